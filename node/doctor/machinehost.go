package doctor

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Machine is the Host that this program runs on.
type Machine struct{}

var _ Host = Machine{}

// ReadFile implements Host.
func (Machine) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

// Stat implements Host.
func (Machine) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }

// Glob implements Host.
func (Machine) Glob(pattern string) ([]string, error) { return filepath.Glob(pattern) }

// Open implements Host.
func (Machine) Open(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return file.Close()
}

// Run implements Host. What the program writes to standard error is quoted only when it fails.
func (Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	var out, words bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &words
	cmd.WaitDelay = time.Second // a child of the program may hold its output open
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(words.String()); text != "" {
			return out.String(), fmt.Errorf("%w: %s", err, text[strings.LastIndexByte(text, '\n')+1:])
		}
		return out.String(), err
	}
	return out.String(), nil
}
