package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// maxAuthFile bounds a credentials file in bytes, maxAuths its entries.
	maxAuthFile = 256 << 10
	maxAuths    = 512
)

// AuthFile is a containers-auth.json: credentials by registry, or by a part of one.
type AuthFile struct {
	auths map[string]Credential
}

// ParseAuthFile reads a containers-auth.json, whose form is also that of Docker's config.json. Keys beside "auths" are not
// looked at. Faults are InvalidArgument and do not show the content.
func ParseAuthFile(raw []byte) (*AuthFile, error) {
	fail := func(format string, args ...any) (*AuthFile, error) {
		return nil, fmt.Errorf("registry credentials: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if len(raw) > maxAuthFile {
		return fail("%d bytes, the limit is %d", len(raw), maxAuthFile)
	}
	var file struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			User          string `json:"username"`
			Password      string `json:"password"`
			IdentityToken string `json:"identitytoken"`
			RegistryToken string `json:"registrytoken"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return fail("not the JSON of a containers-auth.json")
	}
	if len(file.Auths) > maxAuths {
		return fail("%d entries, the limit is %d", len(file.Auths), maxAuths)
	}
	out := &AuthFile{auths: make(map[string]Credential, len(file.Auths))}
	for key, entry := range file.Auths {
		c := Credential{User: entry.User, Password: entry.Password, IdentityToken: entry.IdentityToken, RegistryToken: entry.RegistryToken}
		if entry.Auth != "" {
			user, password, err := decodeAuth(entry.Auth)
			if err != nil {
				return fail("entry %.128q: %v", key, err)
			}
			c.User, c.Password = user, password
		}
		out.auths[normalKey(key)] = c
	}
	return out, nil
}

func decodeAuth(text string) (user, password string, err error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", "", errors.New(`"auth" is not base64`)
	}
	user, password, ok := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
	if !ok || user == "" {
		return "", "", errors.New(`"auth" is not the base64 of user:password`)
	}
	return user, password, nil
}

// normalKey maps the spellings in use to host or host/path. Old files have the address of an API, as in
// https://index.docker.io/v1/.
func normalKey(key string) string {
	for _, scheme := range []string{"https://", "http://"} {
		if rest, ok := strings.CutPrefix(key, scheme); ok {
			key, _, _ = strings.Cut(rest, "/")
		}
	}
	host, path, found := strings.Cut(strings.TrimSuffix(key, "/"), "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		host = "docker.io"
	}
	if !found {
		return host
	}
	return host + "/" + path
}

// Find returns the credential for a repository, written host/path: that of the longest key that is the repository or a
// part of it that ends where a name in its path does. The zero value means that there is none.
func (f *AuthFile) Find(repository string) Credential {
	for key := normalKey(repository); ; {
		if c, ok := f.auths[key]; ok {
			return c
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			return Credential{}
		}
		key = key[:i]
	}
}
