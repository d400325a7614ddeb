package jail_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/unpack/worker/workertest"
	"github.com/coffer-project/coffer/integration/require"
)

// TestEnter lets a process try, from inside, all that it must still be able to do and what it must not.
func TestEnter(t *testing.T) {
	require.Root(t)
	dir := t.TempDir()
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(workertest.Program(t), "probe")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got["enter"] != "" {
		t.Fatalf("enter: %s", got["enter"])
	}
	allowed := map[string]bool{"write file": true, "trusted attribute": true, "whiteout": true, "foreign owner": true, "know its own ids": true}
	seen := 0
	for name, failure := range got {
		seen++
		if allowed[name] != (failure == "") {
			t.Errorf("%s: %q", name, failure)
		}
	}
	if seen < 20 {
		t.Errorf("%d attempts were made", seen)
	}
	if _, err := os.Stat(dir + "/inside"); err != nil {
		t.Error(err)
	}
}
