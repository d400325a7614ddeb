package bundle

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestPropagation: mounts pass from container to container in an emptyDir and nowhere else, and the log tells what is lost.
func TestPropagation(t *testing.T) {
	const (
		volume = "/k/pods/u/volumes/kubernetes.io~empty-dir/cache"
		part   = "/k/pods/u/volume-subpaths/cache/main/0"
		path   = "/srv/data"
	)
	h := madeHost{sub: "a", facts: map[string]facts{
		volume: {dir: true, mode: 0o777}, part: {dir: true, mode: 0o777}, path: {dir: true, mode: 0o777},
	}}
	for name, test := range map[string]struct {
		source, option, root   string
		mapped                 bool
		want, wantRoot, reason string
	}{
		"none":               {source: volume, option: "rprivate", want: "rprivate"},
		"bidirectional":      {source: volume, option: "rshared", root: "rshared", want: "rshared", wantRoot: "rshared"},
		"bidirectional part": {source: part, option: "rshared", root: "rshared", want: "rshared", wantRoot: "rshared"},
		"host to container":  {source: volume, option: "rslave", root: "rslave", want: "rslave", wantRoot: "rslave"},
		"in user namespace": {source: volume, option: "rshared", root: "rshared", mapped: true, want: "rslave",
			reason: "mounts[/v].options[rshared] linux.rootfsPropagation"},
		"hostPath, bidirectional": {source: path, option: "rshared", root: "rshared",
			reason: "mounts[/v].options[rshared] linux.rootfsPropagation"},
		"hostPath, host to container": {source: path, option: "rslave", root: "rslave", wantRoot: "rslave", reason: "mounts[/v].options[rslave]"},
		"unknown root":                {source: volume, option: "rprivate", root: "unbindable", want: "rprivate", reason: "linux.rootfsPropagation"},
	} {
		t.Run(name, func(t *testing.T) {
			d := new(dropped)
			p := &planner{containerID: "c", emptyDirs: &EmptyDirs{}, copy: hostFiles, host: h, dropped: d}
			if test.mapped {
				p.uids = []specs.LinuxIDMapping{{HostID: 1000, Size: 10}}
				p.gids = p.uids
			}
			plan, err := p.run([]specs.Mount{{Destination: "/v", Type: "bind", Source: test.source, Options: []string{"rbind", test.option, "rw"}}})
			if err != nil {
				t.Fatal(err)
			}
			got := slices.DeleteFunc(plan.mounts[0].GetOptions(), func(o string) bool { return o == "rbind" || o == "rw" })
			if root := rootPropagation(test.root, plan.mounts, d); strings.Join(got, " ") != test.want || root != test.wantRoot {
				t.Errorf("options %q, root %q", got, root)
			}
			if reason := strings.Join(*d, " "); reason != test.reason {
				t.Errorf("dropped %q, want %q", reason, test.reason)
			}
		})
	}
}
