package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/proto/keyprovider"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// debugHandler is the runtime handler whose shims and guests log everything that they ever log.
const debugHandler = "debug"

const debugConfig = "log_level = \"debug\"\n[guest]\nlog_level = \"debug\"\n"

// leaks are the secrets of a pod and what its host was told, to be held against each other in the end.
type leaks struct {
	secrets map[string][]byte // by what they are
	told    strings.Builder   // errors and answers
	events  *exec.Cmd         // containerd's
	heard   bytes.Buffer
}

// watchLeaks follows the node's events from now on.
func watchLeaks(t *testing.T, node *harness.Node) *leaks {
	t.Helper()
	l := &leaks{secrets: map[string][]byte{}}
	var err error
	if l.events, err = node.CtrCommand("--namespace", "k8s.io", "events"); err != nil {
		t.Fatal(err)
	}
	l.events.Stdout = &l.heard
	if err := l.events.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l.events.ProcessState == nil {
			l.stop()
		}
	})
	return l
}

// stop ends the following of events; what was heard is whole then.
func (l *leaks) stop() {
	_ = l.events.Process.Kill() // it may have ended
	_ = l.events.Wait()         // killed, as it should be
}

func (l *leaks) add(what string, secret []byte) { l.secrets[what] = secret }

// tell takes down an error that the host was given.
func (l *leaks) tell(err error) { fmt.Fprintln(&l.told, err) }

// addLayerKey finds the key of an image's encrypted layer, as only the owner of the KEK can.
func (l *leaks) addLayerKey(t *testing.T, annotations map[string]string, kek []byte) {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(annotations[keyprovider.LayerAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	packet, err := keyprovider.ParsePacket(raw)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := packet.Open(kek)
	if err != nil {
		t.Fatal(err)
	}
	var options struct {
		Key []byte `json:"symkey"`
	}
	if err := json.Unmarshal(opened, &options); err != nil || len(options.Key) < 32 {
		t.Fatalf("key of %d bytes: %v", len(options.Key), err)
	}
	l.add("layer key", options.Key)
}

// addKeys adds the keys in files of the node, those of the broker and its admin.
func (l *leaks) addKeys(t *testing.T, node *harness.Node) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(node.Dir, "*.key"))
	if err != nil || len(files) < 3 {
		t.Fatalf("keys of the node: %v, %v", files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(raw)
		if block == nil {
			t.Fatalf("%s is not in PEM", file)
		}
		l.add(filepath.Base(file), block.Bytes)
	}
}

// forms are what a secret looks like in a log: as it is, in hexadecimal and decimal numbers, and in base64 wherever it begins in what was
// encoded.
func forms(secret []byte) [][]byte {
	text := hex.EncodeToString(secret)
	out := [][]byte{
		secret, []byte(text), []byte(strings.ToUpper(text)), []byte(strings.Trim(fmt.Sprintf("%d", secret), "[]")),
		[]byte(strings.Trim(fmt.Sprintf("%q", secret), `"`)),
	}
	for shift := range 3 {
		whole := secret[shift : shift+(len(secret)-shift)/3*3]
		out = append(out, []byte(base64.StdEncoding.EncodeToString(whole)), []byte(base64.URLEncoding.EncodeToString(whole)))
	}
	return out
}

// TestForms: a secret is found in what programs make of it, wherever it stands in there.
func TestForms(t *testing.T) {
	secret := []byte("a secret\x00\xff of the owner's")
	for name, text := range map[string]string{
		"raw": "x" + string(secret), "quoted": strconv.Quote("x" + string(secret)), "hex": fmt.Sprintf("%x", "x"+string(secret)), "HEX": fmt.Sprintf("%X", secret),
		"numbers": fmt.Sprintf("%d", append([]byte{1, 2}, secret...)), "base64": base64.StdEncoding.EncodeToString(secret),
		"base64, after a byte": base64.RawURLEncoding.EncodeToString(append([]byte("x"), secret...)), "base64, after two": base64.StdEncoding.EncodeToString(append([]byte("xy"), secret...)),
	} {
		if !slices.ContainsFunc(forms(secret), func(form []byte) bool { return strings.Contains(text, string(form)) }) {
			t.Errorf("%s: not found in %q", name, text)
		}
	}
}

// check ends the following of events, and looks for every secret in everything that the host has.
func (l *leaks) check(t *testing.T, node *harness.Node, broker *brokertest.Broker, pod *sandbox.Report) {
	t.Helper()
	l.stop()
	audit, err := json.Marshal(broker.Audit())
	if err != nil {
		t.Fatal(err)
	}
	report, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string][]byte{"events": l.heard.Bytes(), "errors": []byte(l.told.String()), "audit log": audit, "the pod's report": report}
	// Not the same if nothing was logged: these are in it when everything is.
	for where, known := range map[string]string{
		"events": "/tasks/start", "errors": "policy denied", "audit log": "kbs:///", "the pod's report": "{",
	} {
		if !bytes.Contains(texts[where], []byte(known)) {
			t.Errorf("%s: no %q", where, known)
		}
	}
	containerd := l.readNode(t, node, texts)
	for _, known := range []string{"call answered", "sealed secrets opened", "sealed files opened", "level=debug"} {
		if !bytes.Contains(containerd, []byte(known)) {
			t.Errorf("containerd's log, with those of shim and guest: no %q", known)
		}
	}
	for what, secret := range l.secrets {
		if len(secret) < 16 {
			t.Errorf("%s of %d bytes could be anywhere by chance", what, len(secret))
		}
		for i, form := range forms(secret) {
			for where, text := range texts {
				if at := bytes.Index(text, form); at >= 0 {
					t.Errorf("%s holds the %s, in form %d, after %q", where, what, i, text[max(0, at-120):at])
				}
			}
		}
	}
}

// readNode reads all that the node has written but content and key files: logs, state and configuration. It returns containerd's log.
func (l *leaks) readNode(t *testing.T, node *harness.Node, texts map[string][]byte) []byte {
	t.Helper()
	err := filepath.WalkDir(node.Dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // daemons clean up behind themselves
		case entry.IsDir() && (strings.HasSuffix(path, "/io.containerd.content.v1.content") || strings.HasSuffix(path, "/rootfs") || strings.Contains(entry.Name(), "registry-")):
			return fs.SkipDir // ciphertext, and the program's own files
		case !entry.Type().IsRegular() || strings.HasSuffix(path, ".key"):
			return nil
		}
		if raw, err := os.ReadFile(path); err == nil {
			texts[strings.TrimPrefix(path, node.Dir+"/")] = raw
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	log, ok := texts["containerd.log"]
	if !ok {
		t.Fatal("the node has no containerd.log")
	}
	return log
}
