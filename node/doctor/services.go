package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/proto/initdata"
)

const unit = "coffer-snapshotter.service"

func checkSnapshotter(ctx context.Context, x *Examination) []Finding {
	address := x.snapshotter.Address
	if err := x.Probes.Snapshotter(ctx, address); err != nil {
		return fail(fmt.Sprintf("no answer on %s: %s", address, oneLine(err)), "systemctl start coffer-snapshotter; its reasons are in journalctl -u coffer-snapshotter")
	}
	return ok("answers on " + address)
}

func checkService(ctx context.Context, x *Examination) []Finding {
	if _, err := x.Host.Stat("/run/systemd/system"); err != nil {
		return notApplicable("this node does not run systemd: something else must start the snapshotter before containerd")
	}
	if _, err := x.Host.Run(ctx, "systemctl", "cat", unit); err != nil {
		return warn("there is no unit "+unit, "install contrib/systemd/coffer-snapshotter.service")
	}
	if text, err := x.Host.Run(ctx, "systemctl", "is-active", unit); err != nil {
		return fail(fmt.Sprintf("%s is %s", unit, word(text)), "systemctl start coffer-snapshotter; its reasons are in journalctl -u coffer-snapshotter")
	}
	if text, err := x.Host.Run(ctx, "systemctl", "is-enabled", unit); err != nil {
		return warn(fmt.Sprintf("%s is %s: it will not start at boot", unit, word(text)), "systemctl enable coffer-snapshotter")
	}
	return ok(unit + " is active and enabled")
}

func word(text string) string {
	if text = strings.TrimSpace(text); text == "" {
		return "unknown"
	}
	return text
}

// checkBroker asks the key broker that the node's own initdata names. Guests ask from their pods' network, which may be
// another.
func checkBroker(ctx context.Context, x *Examination) []Finding {
	raw := x.shim.Initdata.Document()
	if raw == nil {
		return notApplicable("initdata.file is empty: pods name their key brokers themselves")
	}
	url, roots, err := broker(raw)
	if err != nil {
		return fail("initdata.file: "+oneLine(err), "write it again: cofferctl initdata create")
	}
	if url == "" {
		return notApplicable("initdata.file names no key broker: encrypted images are refused")
	}
	if err := x.Probes.Broker(ctx, url, roots); err != nil {
		return warn(fmt.Sprintf("%s does not answer this node: %s", url, oneLine(err)),
			"start the broker, or correct initdata.file; guests reach it through their pods' network")
	}
	return ok(url + " answers this node")
}

// broker reads the key broker and its certificates as a guest does.
func broker(raw []byte) (url, roots string, err error) {
	document, err := initdata.Parse(raw)
	if err != nil {
		return "", "", err
	}
	cdh, err := initdata.ParseCDH(document.Data[initdata.KeyCDH])
	if err != nil {
		return "", "", err
	}
	if cdh.KBC.URL != "" {
		return cdh.KBC.URL, cdh.KBC.Cert, nil
	}
	text, has := document.Data[initdata.KeyAA]
	if !has {
		return "", "", nil
	}
	aa, err := initdata.ParseAA(text)
	if err != nil || aa.TokenConfigs.KBS == nil {
		return "", "", err
	}
	return aa.TokenConfigs.KBS.URL, aa.TokenConfigs.KBS.Cert, nil
}
