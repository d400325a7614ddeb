package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/initdata"
)

// The document that --tee makes refuses other guests, and inspect says so.
func TestInitdataTEE(t *testing.T) {
	text, err := runCommand(t, "", initdataCommand(), "initdata", "create", "--default-policy", "development", "--tee", "snp", "--tee", "tdx")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := initdata.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for tee, want := range map[string]error{"snp": nil, "tdx": nil, "sample": errdefs.ErrFailedPrecondition} {
		if err := doc.CheckTEE(tee); !errors.Is(err, want) {
			t.Errorf("%s: %v", tee, err)
		}
	}
	out, err := runCommand(t, text, initdataCommand(), "initdata", "inspect", "-")
	if err != nil || !strings.Contains(out, "policy:    development\nguests:    snp, tdx only\n") {
		t.Errorf("inspect: %v\n%s", err, out)
	}
	if out, err := runCommand(t, "", initdataCommand(), "initdata", "create", "--tee", "sgx"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("unknown kind: %v\n%s", err, out)
	}
}
