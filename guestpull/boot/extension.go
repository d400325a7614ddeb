package boot

import (
	"context"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/guestpull/extension"
)

// stageExtension is the stage of modules that extension images need.
const stageExtension = "extension"

// Extensions mounts the extension images that the kernel command line promises and returns them. A guest without any has none, and
// one whose disks and parameters do not match fails with errdefs.ErrFailedPrecondition. It waits for the disks' driver. Once is enough.
//
// On an inherited machine the init before has checked and mounted them.
func (m *Machine) Extensions(ctx context.Context) ([]*extension.Extension, error) {
	if m.inherited.byInit {
		return extension.Mounted()
	}
	begin := time.Now()
	if len(m.Params.Extensions) == 0 && !hasVirtio(virtioBus, virtioBlock) {
		return nil, nil // no disk could be one
	}
	if err := m.modules.disks.wait(ctx); err != nil {
		return nil, err
	}
	if len(m.Params.Extensions) > 0 {
		if err := m.LoadModules(ctx, stageExtension); err != nil {
			return nil, fmt.Errorf("extensions: %w", err)
		}
	}
	mounted, err := extension.Mount(ctx, m.Params.Extensions)
	if err != nil {
		return nil, err
	}
	m.phases.add("extensions", time.Since(begin))
	return mounted, nil
}
