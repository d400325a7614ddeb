package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/proto/kbs"
)

// providers are the kernel's names of the drivers that make reports (Documentation/ABI/testing/configfs-tsm).
var providers = map[kbs.TEE]string{kbs.TEESNP: "sev_guest", kbs.TEETDX: "tdx_guest"}

// eventLogFile is where the kernel shows the CC event log (ACPI 6.5, section 5.2.34): the firmware's record of what it measured.
const eventLogFile = "/sys/firmware/acpi/tables/data/CCEL"

// TSM is the Platform of a TEE, SNP or TDX. Reports come from the kernel's interface in configfs, but for those of NewForged.
type TSM struct {
	tee      kbs.TEE
	kind     string // of guest, in measured documents
	provider string // the driver from which reports must come
	eventLog string // path
	// get makes a report over a whole report data field.
	get func(inBlob []byte) (*report.Response, error)
	// tdReport returns a fresh TDREPORT.
	tdReport func() ([]byte, error)
	// turn has room for the one request that is under way: reports are slow, and one that nobody waits for any more cannot be stopped.
	turn chan struct{}
}

// NewTSM returns the platform of a machine that is tee, and has tried whether the kernel's driver for it is there: FailedPrecondition if not.
func NewTSM(tee kbs.TEE) (*TSM, error) {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, fmt.Errorf("this machine is a TEE (%s), but its kernel has no reports in configfs (CONFIG_TSM_REPORTS): %w: %w", tee, err, errdefs.ErrFailedPrecondition)
	}
	return NewTSMWith(tee, client, eventLogFile, readTDReport)
}

// NewTSMWith is NewTSM with another kernel: client is its configfs, eventLog the path of the event log, tdReport returns a TDREPORT.
func NewTSMWith(tee kbs.TEE, client configfsi.Client, eventLog string, tdReport func() ([]byte, error)) (*TSM, error) {
	provider, known := providers[tee]
	if !known {
		return nil, fmt.Errorf("TEE %s has no reports in configfs: %w", tee, errdefs.ErrInvalidArgument)
	}
	get := func(inBlob []byte) (*report.Response, error) {
		return report.Get(client, &report.Request{InBlob: inBlob, GetAuxBlob: tee == kbs.TEESNP})
	}
	t := &TSM{tee: tee, kind: string(tee), provider: provider, eventLog: eventLog, get: get, tdReport: tdReport, turn: make(chan struct{}, 1)}
	if err := t.probe(client); err != nil {
		return nil, fmt.Errorf("this machine is a TEE (%s), but cannot attest: %w: %w", tee, err, errdefs.ErrFailedPrecondition)
	}
	return t, nil
}

// probe asks the kernel which driver would make a report.
func (t *TSM) probe(client configfsi.Client) (retErr error) {
	entry, err := client.MkdirTemp(configfsi.TsmPrefix+"/report", "probe")
	if errors.Is(err, syscall.ENXIO) {
		return fmt.Errorf("the driver %s is not loaded, or found no device", t.provider)
	}
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, client.RemoveAll(entry)) }()
	name, err := client.ReadFile(entry + "/provider")
	if err != nil {
		return err
	}
	return t.checkProvider(string(name))
}

func (t *TSM) checkProvider(name string) error {
	if got := strings.TrimSpace(name); got != t.provider {
		return fmt.Errorf("reports come from the driver %.32q instead of %s", got, t.provider)
	}
	return nil
}

// TEE implements Attester.
func (t *TSM) TEE() string { return string(t.tee) }

// Kind implements Platform: the TEE's name, unless it is forged.
func (t *TSM) Kind() string { return t.kind }

// Evidence implements Attester.
func (t *TSM) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	response, err := t.report(ctx, reportData)
	if err != nil {
		return nil, err
	}
	var document any
	if t.tee == kbs.TEESNP {
		document, err = snpEvidence(response)
	} else {
		document, err = tdxEvidence(response, t.eventLog)
	}
	if err != nil {
		return nil, err
	}
	evidence, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("encode %s evidence: %w", t.tee, err)
	}
	return evidence, nil
}

// InitDataField implements Platform. An SNP report reaches the guest encrypted and authenticated by the processor. A TDX quote does not: it
// comes from a service of the host's, and only whoever verifies its signature may believe it. So TDX is asked for its own report instead.
func (t *TSM) InitDataField(ctx context.Context) ([]byte, error) {
	if t.tee == kbs.TEETDX {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return tdxConfigID(t.tdReport)
	}
	parsed, err := t.snpReport(ctx)
	if err != nil {
		return nil, err
	}
	return parsed.HostData, nil
}

// Measurement returns what the processor measured of the guest at its launch: MEASUREMENT of SNP, MRTD of TDX.
func (t *TSM) Measurement(ctx context.Context) ([]byte, error) {
	if t.tee == kbs.TEETDX {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return tdMRTD(t.tdReport)
	}
	parsed, err := t.snpReport(ctx)
	if err != nil {
		return nil, err
	}
	return parsed.Measurement, nil
}

// snpReport is a report on nothing, for what it says of the guest.
func (t *TSM) snpReport(ctx context.Context) (*kbs.SNPReport, error) {
	response, err := t.report(ctx, nil)
	if err != nil {
		return nil, err
	}
	return kbs.ParseSNPReport(response.OutBlob)
}

// report has the kernel make a report. It leaves when ctx ends; the kernel then goes on, and the next caller waits for it.
func (t *TSM) report(ctx context.Context, reportData []byte) (*report.Response, error) {
	inBlob, err := padReportData(reportData)
	if err != nil {
		return nil, fmt.Errorf("collect %s evidence: %w", t.tee, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("collect %s evidence: %w", t.tee, err)
	}
	select {
	case t.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("collect %s evidence: an earlier report is under way: %w", t.tee, ctx.Err())
	}
	type result struct {
		response *report.Response
		err      error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-t.turn }()
		response, err := t.get(inBlob)
		done <- result{response, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("the TEE (%s) made no report: %w: %w", t.tee, r.err, errdefs.ErrUnavailable)
		}
		if err := t.checkProvider(r.response.Provider); err != nil {
			return nil, fmt.Errorf("collect %s evidence: %w: %w", t.tee, err, errdefs.ErrUnavailable)
		}
		return r.response, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("collect %s evidence: %w", t.tee, ctx.Err())
	}
}
