package sandbox

import (
	"context"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/network"
)

// guestFilesDir is where the agent protocol lets the host put files.
const guestFilesDir = "/run/kata-containers/shared/containers"

// GuestFile is a file of the pod that lies in the guest and that its containers see unless they bring their own.
type GuestFile struct {
	// Path is where it lies in the guest, Destination where a container sees it.
	Path, Destination string
}

// Files are the pod's own hosts, resolv.conf and hostname. Under the shim sandboxer nobody else writes them. A pod that
// was made for a container of the podsandbox mode has none: there containerd mounts its own into every container.
func (p *Pod) Files() []GuestFile {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.files
}

// copyFiles writes the pod's files into the guest.
func (p *Pod) copyFiles(ctx context.Context, guest *agent.Client, attachment *network.Attachment) error {
	if !p.request.OwnFiles {
		return nil
	}
	config := p.request.Config
	contents := []struct{ name, destination, content string }{
		{"hosts", "/etc/hosts", hostsFile(config.Hostname, attachment)},
		{"hostname", "/etc/hostname", config.Hostname + "\n"},
		{"resolv.conf", "/etc/resolv.conf", strings.Join(append(config.DNS.Lines(), ""), "\n")},
	}
	var files []GuestFile
	for _, file := range contents {
		target := path.Join(guestFilesDir, p.request.ID+"-"+file.name)
		if _, err := guest.CopyFile(ctx, &agentpb.CopyFileRequest{
			Path: target, FileSize: int64(len(file.content)), FileMode: unix.S_IFREG | 0o644, DirMode: 0o755,
			Data: []byte(file.content),
		}); err != nil {
			return fmt.Errorf("copy %s to the guest: %w", file.destination, err)
		}
		files = append(files, GuestFile{Path: target, Destination: file.destination})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files = files
	return nil
}

// hostsFile names the machine itself and the pod.
func hostsFile(hostname string, attachment *network.Attachment) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if hostname == "" {
		return b.String()
	}
	for _, iface := range attachment.Interfaces {
		for _, address := range iface.Addresses {
			fmt.Fprintf(&b, "%s\t%s\n", address.Addr(), hostname)
		}
	}
	return b.String()
}

// Lines are the settings as lines of a resolv.conf.
func (d DNS) Lines() []string {
	var lines []string
	if len(d.Searches) > 0 {
		lines = append(lines, "search "+strings.Join(d.Searches, " "))
	}
	for _, server := range d.Servers {
		lines = append(lines, "nameserver "+server)
	}
	if len(d.Options) > 0 {
		lines = append(lines, "options "+strings.Join(d.Options, " "))
	}
	return lines
}

// ParseDNS reads the settings back from a resolv.conf; what it does not know it leaves out.
func ParseDNS(resolvConf string) DNS {
	var dns DNS
	for line := range strings.Lines(resolvConf) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			dns.Servers = append(dns.Servers, words[1])
		case "search", "domain":
			dns.Searches = words[1:]
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	return dns
}
