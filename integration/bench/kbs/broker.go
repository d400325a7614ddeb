package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"github.com/coffer-project/coffer/owner/broker/config"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/owner/broker/reference"
	"github.com/coffer-project/coffer/owner/broker/server"
	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/proto/kbs"
)

// serve is the broker's process: it says its address on standard output and writes a profile of its processor time at its end.
func serve(ctx context.Context, configFile, profile string) (retErr error) {
	c, err := config.Load(configFile)
	if err != nil {
		return err
	}
	s, err := server.New(ctx, c)
	if err != nil {
		return err
	}
	out, err := os.Create(profile)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	defer func() { retErr = errors.Join(retErr, out.Close()) }()
	if err := pprof.StartCPUProfile(out); err != nil {
		return errors.Join(err, s.Close())
	}
	defer pprof.StopCPUProfile()
	fmt.Println(s.URL())
	server.CollectLess()
	return s.Run(ctx)
}

// broker is the running process.
type broker struct {
	url     string
	process *exec.Cmd
	profile string
}

// start runs this program as a broker.
func (s *site) start(ctx context.Context, profile string) (*broker, error) {
	text, err := s.config.Encode()
	if err != nil {
		return nil, err
	}
	configFile := filepath.Join(s.dir, "kbs.toml")
	if err := os.WriteFile(configFile, text, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &broker{profile: profile}
	b.process = exec.CommandContext(ctx, self, "broker", configFile, b.profile)
	b.process.Cancel = func() error { return b.process.Process.Signal(syscall.SIGTERM) }
	b.process.WaitDelay = 20 * time.Second
	b.process.Stderr = os.Stderr
	out, err := b.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := b.process.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("broker did not start: %w", err), b.stop())
	}
	b.url = strings.TrimSpace(line)
	return b, nil
}

// stop ends the process, which writes its profile then. It may be called again.
func (b *broker) stop() error {
	if b.process.ProcessState != nil {
		return nil
	}
	if err := b.process.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return b.process.Wait()
}

// writeKeys writes all keys and certificates that the configuration names and returns the CA for guests.
func writeKeys(c *config.Config, roots []byte) ([]byte, error) {
	token, err := keys.NewToken()
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{
		c.Evidence.TestRootsFile: roots, c.Store.MasterKeyFile: keys.NewMaster(), c.Attest.TokenKeyFile: token,
		c.Server.TLSCertFile: cert, c.Server.TLSKeyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			return nil, err
		}
	}
	return cert, nil
}

// fillStore puts the key and the reference values into the broker's store.
func fillStore(c config.Config, references []byte) (retErr error) {
	ctx := context.Background()
	entries, err := c.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, entries.Close()) }()
	name, err := kbs.ParseResourceURI(uri)
	if err != nil {
		return err
	}
	if err := (store.Resources{Store: entries}).Put(ctx, name, make([]byte, 32)); err != nil {
		return err
	}
	_, err = reference.New(entries, time.Now).Register(ctx, references)
	return err
}
