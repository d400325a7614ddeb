package harness

import (
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/proto/initdata"
)

// Guest says what a pod's measured document tells the guest.
type Guest struct {
	// BrokerURL is the key broker; empty means the node's own.
	BrokerURL string
	// PlainRegistries are hosts reached by http besides the node's http registry.
	PlainRegistries []string
	// Policy is the text of a policy.rego. Without one the document asks for development, so that tests may run what they like in their
	// containers, unless Strict is set.
	Policy string
	Strict bool
	// ImagePolicy is a containers-policy.json; empty means none.
	ImagePolicy string
	// Credentials is the name of the broker's resource with the logins for registries; empty means none.
	Credentials string
	// REST is what the guest gives to the pod's programs.
	REST []string
	// TEEs are the kinds of guests that the document is for; nil means what the node has, which is none: sample, or a forged one.
	TEEs []string
	// PullProgress is how long a registry may be silent, as in "10s"; empty means the guest's default.
	PullProgress string
}

// PodAnnotations are those of a pod that knows the node's registries and broker.
func (n *Node) PodAnnotations(guest Guest) (map[string]string, error) {
	if guest.BrokerURL == "" {
		guest.BrokerURL = n.Broker.URL
	}
	var cdh strings.Builder
	fmt.Fprintf(&cdh, "[kbc]\nname = %q\nurl = %q\n", initdata.KBCCloud, guest.BrokerURL)
	if strings.HasPrefix(guest.BrokerURL, "https:") {
		fmt.Fprintf(&cdh, "kbs_cert = '''\n%s'''\n", n.CA.PEM)
	}
	fmt.Fprintf(&cdh, "[image]\nextra_root_certificates = ['''\n%s''']\n", n.CA.PEM)
	if guest.ImagePolicy != "" {
		fmt.Fprintf(&cdh, "image_security_policy = '''%s'''\n", guest.ImagePolicy)
	}
	if guest.Credentials != "" {
		fmt.Fprintf(&cdh, "authenticated_registry_credentials_uri = %q\n", guest.Credentials)
	}
	if guest.PullProgress != "" {
		fmt.Fprintf(&cdh, "image_pull_progress_timeout = %q\n", guest.PullProgress)
	}
	for _, host := range append([]string{n.HTTP.Host}, guest.PlainRegistries...) {
		fmt.Fprintf(&cdh, "[[image.registry_config.registry]]\nlocation = %q\ninsecure = true\n", host)
	}
	document := initdata.Document{
		Version: "0.1.0", Algorithm: "sha384", Data: map[string]string{initdata.KeyCDH: cdh.String()},
	}
	coffer := initdata.CofferConfig{REST: initdata.RESTConfig{Serve: guest.REST}, Attestation: initdata.AttestationConfig{TEEs: guest.TEEs}}
	if guest.TEEs == nil {
		coffer.Attestation.TEEs = []string{n.tee()}
	}
	switch {
	case guest.Policy != "":
		document.Data[initdata.KeyPolicy] = guest.Policy
	case !guest.Strict:
		coffer.Policy.Default = initdata.DefaultDevelopment
	}
	if text := coffer.Encode(); text != "" {
		document.Data[initdata.KeyCoffer] = text
	}
	raw, err := document.Encode()
	if err != nil {
		return nil, err
	}
	value, err := initdata.EncodeAnnotation(raw)
	if err != nil {
		return nil, err
	}
	return map[string]string{initdata.Annotation: value}, nil
}
