package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/initdata"
)

// addHosts adds the hosts.toml files below a folder like containerd's certs.d, and the certificates that lie beside them. Keys
// stay out: the document is no secret, so a hosts.toml must name them as resources of the key broker.
func addHosts(root string, doc *initdata.Document) error {
	if root == "" {
		return nil
	}
	folders, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("read hosts.toml files: %w", err)
	}
	found := false
	for _, folder := range folders {
		raw, err := os.ReadFile(filepath.Join(root, folder.Name(), "hosts.toml"))
		if os.IsNotExist(err) || !folder.IsDir() {
			continue
		}
		if err != nil {
			return fmt.Errorf("read hosts.toml: %w", err)
		}
		found = true
		doc.Data["hosts."+strings.ReplaceAll(registryFolder(folder.Name()), ":", "_")+".toml"] = string(raw)
		if err := addCertificates(filepath.Join(root, folder.Name()), doc); err != nil {
			return err
		}
	}
	if !found {
		return fmt.Errorf("no folder of %s holds a hosts.toml: %w", root, errdefs.ErrNotFound)
	}
	_, err = doc.Hosts()
	return err
}

// registryFolder brings the two spellings of a port, host:5000 and host_5000_, to the second.
func registryFolder(name string) string {
	if strings.Contains(name, ":") {
		return name + "_"
	}
	return name
}

func addCertificates(folder string, doc *initdata.Document) error {
	files, err := os.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("read certificates: %w", err)
	}
	for _, f := range files {
		switch filepath.Ext(f.Name()) {
		case ".crt", ".cert", ".pem":
		default:
			continue
		}
		raw, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil {
			return fmt.Errorf("read certificate: %w", err)
		}
		if strings.Contains(string(raw), "PRIVATE KEY") {
			return fmt.Errorf("%s holds a private key, and initdata is no secret: put it into the key broker and name it in hosts.toml as kbs:///repository/type/tag: %w",
				filepath.Join(folder, f.Name()), errdefs.ErrInvalidArgument)
		}
		if old, taken := doc.Data[f.Name()]; taken && old != string(raw) {
			return fmt.Errorf("two registries bring different files named %s: rename one: %w", f.Name(), errdefs.ErrAlreadyExists)
		}
		doc.Data[f.Name()] = string(raw)
	}
	return nil
}
