package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// claim is one thing that had to be true before the container ran.
type claim struct {
	Claim   string `json:"claim"`
	Value   string `json:"value"`
	Meaning string `json:"meaning"`
}

// release is to whom the broker gave the key, from its audit log, in its own words and in everybody's.
type release struct {
	TEE    string         `json:"tee"`
	Claims map[string]any `json:"claims"`
	// Because are the broker's reasons, GuestChecked what the guest made sure of before it asked for the key.
	Because      []claim `json:"because"`
	GuestChecked []claim `json:"guest_checked"`
}

// explain reads the claims of one part, which the broker recorded, and what the pod reports of its container.
func explain(record map[string]any, container sandbox.ContainerReport) (*release, error) {
	raw, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	r := &release{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, err
	}
	var token struct {
		Claims struct {
			Submods map[string]ear.Submod `json:"submods"`
		} `json:"claims"`
	}
	if err := json.Unmarshal(raw, &token); err != nil {
		return nil, err
	}
	cpu, ok := token.Claims.Submods["cpu0"]
	if !ok || len(token.Claims.Submods) != 1 {
		return nil, fmt.Errorf("the broker recorded %d parts of the guest, not its processor alone", len(token.Claims.Submods))
	}
	var report struct {
		Measurement string `json:"measurement"`
		InitData    string `json:"init_data"`
		Forged      bool   `json:"test_roots"`
	}
	if err := json.Unmarshal(cpu.Evidence[r.TEE], &report); err != nil {
		return nil, fmt.Errorf("claims of %s: %w", r.TEE, err)
	}
	signer := "signed by AMD's key"
	if report.Forged {
		signer = "FORGED: signed by this demo, not by a processor; only this broker believes it"
	}
	v := cpu.Vector
	r.Because = []claim{
		{"tee", r.TEE, signer},
		{"verdict", string(cpu.Status), "of the policy " + cpu.PolicyID + ", on all that follows"},
		{"measurement", report.Measurement, told(v.Executables, appraise.ExecutablesApproved, "kernel, initrd and command line are those that the owner measured")},
		{"hardware", fmt.Sprint(v.Hardware), told(v.Hardware, appraise.HardwareGenuine, "the processor's firmware has versions that the owner accepts")},
		{"configuration", fmt.Sprint(v.Configuration), told(v.Configuration, appraise.ConfigurationSafe, "the host may neither debug the guest nor move it")},
		{"host data", report.InitData, "digest of the initdata: broker, image policy and interface policy are the owner's"},
	}
	r.GuestChecked = []claim{{"image", container.ManifestDigest, "the digest that the interface policy names, for this command"}}
	if container.Verdict != nil {
		for _, a := range container.Verdict.Accepted {
			r.GuestChecked = append(r.GuestChecked, claim{"signature", a.KeyID, "the key that the image policy asks for has signed " + a.Identity})
		}
	}
	return r, nil
}

// told explains a code of the trust vector (AR4SI): what it means if it is the good one.
func told(code, good int8, meaning string) string {
	if code != good {
		return fmt.Sprintf("NOT so that %s (%d)", meaning, code)
	}
	return fmt.Sprintf("%s (trust vector: %d)", meaning, code)
}

// print shows the reasons.
func (r *release) print(out io.Writer) {
	if r == nil {
		return
	}
	for _, part := range []struct {
		title  string
		claims []claim
	}{{"why the broker released the key", r.Because}, {"what the guest checked before it asked for the key", r.GuestChecked}} {
		fmt.Fprintf(out, "\n%s:\n", part.title)
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, c := range part.claims {
			fmt.Fprintf(table, "  %s\t%s\t%s\n", c.Claim, abbreviate(c.Value), c.Meaning)
		}
		_ = table.Flush()
	}
}

// faults tells what is missing from a release that the demo is to show.
func (r *release) faults() []string {
	var faults []string
	if r == nil || len(r.Because) == 0 {
		return []string{"the broker's log shows no release of the key"}
	}
	for _, c := range r.Because {
		if c.Value == "" || strings.HasPrefix(c.Meaning, "NOT") {
			faults = append(faults, fmt.Sprintf("the key was released although %s is %q: %s", c.Claim, c.Value, c.Meaning))
		}
	}
	signed := false
	for _, c := range r.GuestChecked {
		signed = signed || c.Claim == "signature" && c.Value != ""
	}
	if !signed {
		faults = append(faults, "the guest checked no signature")
	}
	return faults
}
