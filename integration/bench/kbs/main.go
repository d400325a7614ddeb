// Command kbs measures a key broker on this machine: whole handshakes of new guests (TLS, challenge, SEV-SNP evidence, token, first key)
// and reads of keys by attested guests. The broker is a process of its own with everything on that a real one has: TLS, a sealed store,
// reference values, the built-in policy that trusts only affirmed guests, an audit log. The evidence is forged under roots of the
// measurement's own, but signed and verified as that of a processor is. Guests and broker share this machine's processors, so the broker
// alone can do more; its own processor time is reported too.
package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/log"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/integration/program"
	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/owner/broker/config"
)

// uri is the key that guests fetch.
const uri = "kbs:///bench/key/1"

func main() {
	program.Main(&cli.App{
		Name:  "kbs",
		Usage: "measure the key broker",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Value: "out/bench", Usage: "folder for kbs.json, kbs.svg and profiles of the broker"},
			&cli.DurationFlag{Name: "time", Value: 10 * time.Second, Usage: "how long each measurement takes"},
			&cli.IntFlag{Name: "guests", Value: 8, Usage: "guests at a time"},
		},
		Action: func(c *cli.Context) error {
			return bench(c.Context, c.String("out"), c.Duration("time"), c.Int("guests"))
		},
		Commands: []*cli.Command{{
			Name: "broker", Hidden: true, ArgsUsage: "CONFIG PROFILE",
			Usage:  "the measured process",
			Action: func(c *cli.Context) error { return serve(c.Context, c.Args().Get(0), c.Args().Get(1)) },
		}},
	})
}

func bench(ctx context.Context, out string, length time.Duration, guests int) (retErr error) {
	dir, err := os.MkdirTemp("", "coffer-bench-kbs-")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(dir)) }()
	s, err := newSite(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	r := &report{Processors: runtime.NumCPU(), Guests: guests, Seconds: length.Seconds()}
	for _, m := range []struct {
		name string
		load func(context.Context, *site, *broker) (func(context.Context) error, error)
		into *figures
	}{{"handshakes", handshakes, &r.Handshakes}, {"reads", reads, &r.Reads}} {
		program.Say("%s for %s", m.name, length)
		if *m.into, err = s.measure(ctx, m.load, filepath.Join(out, "kbs-"+m.name+".pprof"), length, guests); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	r.print(os.Stdout)
	return r.write(out)
}

// site is what both measurements use: a broker's configuration, and a forged processor.
type site struct {
	dir    string
	config config.Config
	caPEM  []byte
	signer *snptest.Signer
}

var measurement = bytes.Repeat([]byte{0x5a}, 48)

func newSite(dir string) (*site, error) {
	s := &site{dir: dir, config: config.Default()}
	var err error
	if s.signer, err = snptest.New("Genoa"); err != nil {
		return nil, err
	}
	c := &s.config
	c.LogLevel = "warn"
	c.Server.Listen, c.Server.RequestsPer, c.Server.RequestBurst = "127.0.0.1:0", 1e6, 1e6
	c.Evidence.CollateralDir = filepath.Join(dir, "collateral")
	c.Store.Path = filepath.Join(dir, "store")
	c.Audit.File = filepath.Join(dir, "audit.jsonl")
	c.Evidence.TestRootsFile = filepath.Join(dir, "roots.pem")
	c.Store.MasterKeyFile = filepath.Join(dir, "master.key")
	c.Attest.TokenKeyFile = filepath.Join(dir, "token.key")
	c.Server.TLSCertFile, c.Server.TLSKeyFile = filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.key")
	if s.caPEM, err = writeKeys(c, s.signer.Roots()); err != nil {
		return nil, err
	}
	references, err := json.Marshal(appraise.Values{
		appraise.RefSNPMeasurement: []any{hex.EncodeToString(measurement)},
		appraise.RefSNPBootloader:  float64(s.signer.TCB.Bootloader), appraise.RefSNPTEE: float64(s.signer.TCB.TEE),
		appraise.RefSNPFirmware: float64(s.signer.TCB.SNP), appraise.RefSNPMicrocode: float64(s.signer.TCB.Microcode),
	})
	if err != nil {
		return nil, err
	}
	return s, fillStore(*c, references)
}

// forger is the attester of a guest on the forged processor.
type forger struct{ signer *snptest.Signer }

// Evidence implements attest.Attester.
func (f forger) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	return f.signer.Evidence(snptest.Report{ReportData: reportData, Measurement: measurement})
}

// TEE implements attest.Attester.
func (forger) TEE() string { return "snp" }

var _ attest.Attester = forger{}

func init() {
	// The guests' client says nothing; what the broker says belongs to its own process.
	if err := log.SetLevel("warn"); err != nil {
		panic(err) // the level is a constant
	}
}
