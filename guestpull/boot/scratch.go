package boot

import (
	"context"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/guestpull/scratch"
)

// The stages of modules that a scratch disk needs.
const (
	stageScratch              = "scratch"
	stageScratchAuthenticated = "scratch-authenticated"
)

// Scratch mounts the scratch disk at dir, if the kernel command line promises one: found tells whether it does. Once is
// enough. It waits for the disks' driver.
func (m *Machine) Scratch(ctx context.Context, dir string) (found bool, err error) {
	if m.Params.Scratch == scratch.None {
		return false, nil
	}
	begin := time.Now()
	if err := m.modules.disks.wait(ctx); err != nil {
		return true, err
	}
	stages := []string{stageScratch}
	if m.Params.Scratch == scratch.Authenticated {
		stages = append(stages, stageScratchAuthenticated)
	}
	for _, stage := range stages {
		if err := m.LoadModules(ctx, stage); err != nil {
			return true, fmt.Errorf("scratch disk: %w", err)
		}
	}
	if err := scratch.Open(ctx, m.Params.Scratch, dir); err != nil {
		return true, err
	}
	m.phases.add("scratch", time.Since(begin))
	return true, nil
}
