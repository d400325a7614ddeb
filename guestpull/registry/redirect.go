package registry

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
)

const maxRedirects = 5

// checkRedirect lets a registry send us to its storage, but neither in circles, nor from https to http, nor to the guest
// itself or to what is on its link, such as a cloud's metadata service. Whoever is not the registry gets nothing that is
// meant for the registry: no credentials and none of the headers that a hosts.toml adds.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	refuse := func(format string, args ...any) error {
		return &statusError{msg: fmt.Sprintf("registry %s redirects "+format, append([]any{first.Host}, args...)...), class: errdefs.ErrFailedPrecondition}
	}
	switch {
	case len(via) > maxRedirects:
		return refuse("more than %d times", maxRedirects)
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return refuse("to scheme %.16q, which is neither http nor https", req.URL.Scheme)
	case first.Scheme == "https" && req.URL.Scheme != "https":
		return refuse("from https to %.16s", req.URL.Scheme)
	case req.URL.User != nil:
		return refuse("to an address with a user name in it")
	case isLocal(req.URL.Hostname()) && !isLocal(first.Hostname()):
		return refuse("to %.64q, which is not outside of the guest", req.URL.Host)
	}
	if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		for key := range req.Header {
			switch key {
			case "Accept", "Accept-Encoding", "Range", "User-Agent":
			default:
				req.Header.Del(key)
			}
		}
	}
	// It would tell the storage which registry, repository and namespace was asked.
	req.Header.Del("Referer")
	return nil
}

// isLocal is true for addresses that mean the machine itself or its own link.
func isLocal(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		return ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast()
	}
	return false
}
