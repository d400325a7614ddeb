package bundle

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/shim/hostfiles"
)

// Destinations of the files that a pod gives to its containers.
const (
	pathHostname = "/etc/hostname"
	pathHosts    = "/etc/hosts"
	pathResolv   = "/etc/resolv.conf"
)

// sandboxFileNames is in the order in which mounts are added.
var sandboxFileNames = []string{pathHostname, pathHosts, pathResolv}

// SandboxFiles makes the contents of a pod's /etc/hostname, /etc/hosts and /etc/resolv.conf from its configuration,
// keyed by these paths. A file that the configuration says nothing about is left out. ips are the pod's addresses.
// Values that would break out of their line fail with errdefs.ErrInvalidArgument.
func SandboxFiles(config *runtime.PodSandboxConfig, ips []string) (map[string][]byte, error) {
	files := make(map[string][]byte, len(sandboxFileNames))
	hostname := config.GetHostname()
	if hostname != "" {
		if err := checkWord("hostname", hostname); err != nil {
			return nil, err
		}
		files[pathHostname] = []byte(hostname + "\n")
	}
	hosts, err := hostsFile(hostname, ips)
	if err != nil {
		return nil, err
	}
	files[pathHosts] = hosts
	resolv, err := resolvFile(config.GetDnsConfig())
	if err != nil {
		return nil, err
	}
	if resolv != nil {
		files[pathResolv] = resolv
	}
	return files, nil
}

// SandboxJobs are the copy jobs that bring the files to the guest, and where each will be, by destination: the
// SandboxFiles of Options for every container of the pod.
func SandboxJobs(sandboxID string, files map[string][]byte) (jobs []hostfiles.Job, paths map[string]string) {
	paths = make(map[string]string, len(files))
	for _, destination := range sandboxFileNames {
		content, ok := files[destination]
		if !ok {
			continue
		}
		guest := guestPath(sandboxID, destination)
		paths[destination] = guest
		jobs = append(jobs, hostfiles.Job{GuestPath: guest, Mode: unix.S_IFREG | 0o644, Content: content})
	}
	return jobs, paths
}

func hostsFile(hostname string, ips []string) ([]byte, error) {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	b.WriteString("fe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range ips {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return nil, fmt.Errorf("pod address %.64q: %w: %w", ip, err, errdefs.ErrInvalidArgument)
		}
		if hostname != "" {
			fmt.Fprintf(&b, "%s\t%s\n", addr, hostname)
		}
	}
	return []byte(b.String()), nil
}

func resolvFile(dns *runtime.DNSConfig) ([]byte, error) {
	if len(dns.GetServers())+len(dns.GetSearches())+len(dns.GetOptions()) == 0 {
		return nil, nil
	}
	var b strings.Builder
	if err := line(&b, "search", dns.GetSearches()...); err != nil {
		return nil, err
	}
	for _, server := range dns.GetServers() {
		if err := line(&b, "nameserver", server); err != nil {
			return nil, err
		}
	}
	if err := line(&b, "options", dns.GetOptions()...); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

func line(b *strings.Builder, keyword string, words ...string) error {
	for _, word := range words {
		if err := checkWord("dns "+keyword, word); err != nil {
			return err
		}
	}
	if len(words) > 0 {
		fmt.Fprintf(b, "%s %s\n", keyword, strings.Join(words, " "))
	}
	return nil
}

func checkWord(what, word string) error {
	if word == "" || len(word) > 1024 || strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("%s %.64q of the pod is not one word: %w", what, word, errdefs.ErrInvalidArgument)
	}
	return nil
}
