package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

var (
	hostname   = lazyregexp.New(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?$`)
	sysctlName = lazyregexp.New(`^net\.[a-z0-9_]+(\.[a-z0-9_]+)+$`)
	searchWord = lazyregexp.New(`^[a-zA-Z0-9_.-]{1,255}$`)
	optionWord = lazyregexp.New(`^[a-z0-9-]+(:[0-9]{1,4})?$`)
)

// Limits of a resolver configuration: Kubernetes allows 3 servers and 32 search domains.
const (
	maxDNSLines = 64
	maxDNSWords = 64
)

func checkHostname(name string) error {
	if name != "" && !hostname.MatchString(name) {
		return fmt.Errorf("hostname %.64q: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

func splitDots(name string) []string { return strings.Split(name, ".") }

// resolvConf rebuilds a resolver configuration from lines of one, or from bare addresses of name servers. It returns nil for no lines.
func resolvConf(lines []string) ([]byte, error) {
	if len(lines) > maxDNSLines {
		return nil, fmt.Errorf("%d lines of dns configuration: at most %d are allowed: %w", len(lines), maxDNSLines, errdefs.ErrInvalidArgument)
	}
	var out bytes.Buffer
	for _, line := range lines {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' || words[0][0] == ';' {
			continue
		}
		if isAddress(words[0]) {
			words = append([]string{"nameserver"}, words...)
		}
		if err := checkDNS(words); err != nil {
			return nil, err
		}
		fmt.Fprintln(&out, strings.Join(words, " "))
	}
	return out.Bytes(), nil
}

func checkDNS(words []string) error {
	ok := len(words) > 1 && len(words) <= maxDNSWords
	for _, w := range words[1:] {
		switch words[0] {
		case "nameserver":
			ok = ok && len(words) == 2 && isAddress(w)
		case "search", "domain":
			ok = ok && (searchWord.MatchString(w) || w == ".")
		case "options":
			ok = ok && optionWord.MatchString(w)
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("dns configuration line %.40q: %w", strings.Join(words, " "), errdefs.ErrInvalidArgument)
	}
	return nil
}

func isAddress(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// writeFile replaces a file in one step.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".new"
	err := os.WriteFile(tmp, data, 0o644)
	if errors.Is(err, unix.EROFS) {
		return os.WriteFile(path, data, 0o644) // the one file of a read-only root that can be written
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
