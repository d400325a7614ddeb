package bundle

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	ocipb "github.com/coffer-project/coffer/proto/oci"
)

// addWritableBelow keeps what is mounted below the source of a read-only mount as it is, unless the mount is to be
// read-only with all below it (rro): the copy at guest is one file system, so these parts of it are mounted once more.
func (p *planner) addWritableBelow(out *mountPlan, m specs.Mount, guest string) error {
	if !slices.Contains(m.Options, "rbind") || !slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro") {
		return nil
	}
	below, err := p.host.writableBelow(m.Source)
	if err != nil {
		return err
	}
	for _, rel := range below {
		destination := path.Join(m.Destination, rel)
		out.mounts = append(out.mounts, &ocipb.Mount{
			Destination: destination, Source: path.Join(guest, rel), Type: "bind", Options: []string{"rbind", "rprivate", "rw"},
		})
		out.writable = append(out.writable, destination)
	}
	return nil
}

func (realHost) writableBelow(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("resolve mount source: %w", err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("read mounts of this host: %w", err)
	}
	var below []string
	for _, m := range mounts {
		rel, is := strings.CutPrefix(m.Mountpoint, strings.TrimSuffix(dir, "/")+"/")
		// Of several mounts at one place the last is the one that shows.
		below = slices.DeleteFunc(below, func(other string) bool { return other == rel })
		if is && slices.Contains(strings.Split(m.Options, ","), "rw") && slices.Contains(strings.Split(m.VFSOptions, ","), "rw") {
			below = append(below, rel)
		}
	}
	slices.Sort(below) // parents before children
	return below, nil
}
