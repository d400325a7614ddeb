package config

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/log"
)

// checkCertificate is how often at most the files of a certificate are looked at.
const checkCertificate = time.Second

// Certificate is a TLS certificate that is read again when its files change, so that it can be renewed without a restart.
type Certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]fileStamp
	checked time.Time
}

type fileStamp struct {
	modified time.Time
	size     int64
}

func newCertificate(certFile, keyFile string) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile}
	if err := c.load(c.stamps()); err != nil {
		return nil, err
	}
	return c, nil
}

// Get is for tls.Config.GetCertificate. Where the new files cannot be used (for example because only one of them has been replaced yet) the
// old certificate stays.
func (c *Certificate) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.checked) < checkCertificate {
		return c.current, nil
	}
	c.checked = now
	stamp := c.stamps()
	if stamp == c.stamp {
		return c.current, nil
	}
	if err := c.load(stamp); err != nil {
		log.G(hello.Context()).WithError(err).Warn("the changed TLS certificate cannot be used, the old one stays")
	} else {
		log.G(hello.Context()).WithField("file", c.certFile).Info("TLS certificate was read again")
	}
	return c.current, nil
}

func (c *Certificate) load(stamp [2]fileStamp) error {
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("load TLS certificate %s and key: %w", c.certFile, err)
	}
	c.current, c.stamp = &cert, stamp
	return nil
}

func (c *Certificate) stamps() (stamp [2]fileStamp) {
	for i, name := range []string{c.certFile, c.keyFile} {
		if info, err := os.Stat(name); err == nil {
			stamp[i] = fileStamp{modified: info.ModTime(), size: info.Size()}
		}
	}
	return stamp
}
