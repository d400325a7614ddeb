package doctor

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	shim "github.com/coffer-project/coffer/shim/config"
)

const (
	runtimeType    = "io.containerd.coffer.v2"
	shimName       = "containerd-shim-coffer-v2"
	podAnnotations = "io.katacontainers.*"
	remapIDs       = "remap-ids"
	dropIn         = "put contrib/containerd/coffer.toml into /etc/containerd/conf.d, have imports = [\"/etc/containerd/conf.d/*.toml\"] in containerd's config.toml, and restart containerd"
)

// minContainerd is the oldest version that works: major and minor.
var minContainerd = [2]int{2, 3}

// containerdConfig is what matters here of containerd's configuration, version 3 and later.
type containerdConfig struct {
	Proxies map[string]proxyPlugin `toml:"proxy_plugins"`
	Plugins struct {
		Runtime struct {
			Containerd struct {
				Runtimes map[string]handler `toml:"runtimes"`
			} `toml:"containerd"`
		} `toml:"io.containerd.cri.v1.runtime"`
		Images struct {
			Snapshotter string `toml:"snapshotter"`
			LocalPull   bool   `toml:"use_local_image_pull"`
		} `toml:"io.containerd.cri.v1.images"`
		Transfer struct {
			Unpack []struct {
				Platform    string `toml:"platform"`
				Snapshotter string `toml:"snapshotter"`
			} `toml:"unpack_config"`
		} `toml:"io.containerd.transfer.v1.local"`
		Shims struct {
			Env []string `toml:"env"`
		} `toml:"io.containerd.shim.v1.manager"`
	} `toml:"plugins"`
}

type proxyPlugin struct {
	Type         string            `toml:"type"`
	Address      string            `toml:"address"`
	Capabilities []string          `toml:"capabilities"`
	Exports      map[string]string `toml:"exports"`
}

type handler struct {
	RuntimeType      string   `toml:"runtime_type"`
	RuntimePath      string   `toml:"runtime_path"`
	Snapshotter      string   `toml:"snapshotter"`
	Sandboxer        string   `toml:"sandboxer"`
	DisablePausePull bool     `toml:"disable_pause_image_pull"`
	PodAnnotations   []string `toml:"pod_annotations"`
	Options          struct {
		ConfigPath string
	} `toml:"options"`
}

// ours are the runtime handlers that run Coffer's pods, by name.
func (x *Examination) ours() map[string]handler {
	handlers := maps.Clone(x.containerd.Plugins.Runtime.Containerd.Runtimes)
	maps.DeleteFunc(handlers, func(_ string, h handler) bool { return h.RuntimeType != runtimeType })
	return handlers
}

var containerdVersion = regexp.MustCompile(`\bv?(\d+)\.(\d+)\.\d+`)

// checkContainerd asks containerd for its version and for its configuration with all imports merged.
func checkContainerd(ctx context.Context, x *Examination) []Finding {
	const install = "install containerd 2.3 or newer; its directory must be on PATH"
	text, err := x.Host.Run(ctx, "containerd", "--version")
	if err != nil {
		return fail("containerd does not run: "+oneLine(err), install)
	}
	args := []string{"config", "dump"}
	if x.Paths.Containerd != "" {
		args = []string{"--config", x.Paths.Containerd, "config", "dump"}
	}
	dump, err := x.Host.Run(ctx, "containerd", args...)
	if err != nil {
		return fail("containerd cannot read its configuration: "+oneLine(err), "correct it; --containerd-config names another file")
	}
	config := new(containerdConfig)
	if err := toml.Unmarshal([]byte(dump), config); err != nil {
		return fail("containerd's configuration: "+oneLine(err), "correct it; --containerd-config names another file")
	}
	x.containerd = config
	found := containerdVersion.FindStringSubmatch(text)
	if found == nil {
		return warn("containerd names no version", install)
	}
	major, _ := strconv.Atoi(found[1])
	minor, _ := strconv.Atoi(found[2])
	if major < minContainerd[0] || major == minContainerd[0] && minor < minContainerd[1] {
		return fail("containerd is version "+found[0], install)
	}
	return ok("version " + found[0])
}

// checkShimBinary looks where containerd does: at the handlers' runtime_path, or on the PATH, which must be containerd's own
// too.
func checkShimBinary(ctx context.Context, x *Examination) []Finding {
	names := map[string]bool{}
	if x.containerd != nil {
		for _, h := range x.ours() {
			names[cmp.Or(h.RuntimePath, shimName)] = true
		}
	}
	if len(names) == 0 {
		names[shimName] = true
	}
	var all []Finding
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if _, err := x.Host.Run(ctx, name, "-v"); err != nil {
			all = append(all, fail(name+" does not run: "+oneLine(err), "install it into a directory of containerd's PATH, such as /usr/local/bin")...)
			continue
		}
		all = append(all, ok(name+" runs")...)
	}
	return all
}

// unread is what the checks of containerd's configuration find when it could not be read.
func (x *Examination) unread() []Finding {
	return notApplicable("containerd's configuration is not known")
}

func checkHandlers(_ context.Context, x *Examination) []Finding {
	if x.containerd == nil {
		return x.unread()
	}
	handlers := x.ours()
	if len(handlers) == 0 {
		return fail("no runtime handler has runtime_type "+runtimeType, dropIn)
	}
	proxy, _, _ := x.proxy()
	var all []Finding
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		all = append(all, x.checkHandler(name, handlers[name], proxy)...)
	}
	return all
}

func (x *Examination) checkHandler(name string, h handler, proxy string) []Finding {
	var all []Finding
	add := func(f []Finding) { all = append(all, f...) }
	if h.Snapshotter != proxy {
		add(fail(fmt.Sprintf("handler %s has snapshotter %q: images would be unpacked on this host", name, h.Snapshotter), fmt.Sprintf("set it to %q", proxy)))
	}
	switch {
	case h.Sandboxer == "shim" && !h.DisablePausePull:
		add(warn("handler "+name+" pulls a pause image that no pod uses", "set disable_pause_image_pull = true"))
	case h.Sandboxer != "shim" && h.Sandboxer != "podsandbox" && h.Sandboxer != "":
		add(fail(fmt.Sprintf("handler %s has the unknown sandboxer %q", name, h.Sandboxer), `set it to "shim"`))
	}
	if !slices.ContainsFunc(h.PodAnnotations, func(pattern string) bool {
		fits, err := path.Match(pattern, "io.katacontainers.config.hypervisor.cc_init_data")
		return err == nil && fits
	}) {
		add(warn("handler "+name+" passes no annotations of pods on: pods can bring no initdata and choose no size",
			fmt.Sprintf("set pod_annotations = [%q]", podAnnotations)))
	}
	config := h.Options.ConfigPath
	if config == "" {
		config = x.defaultConfig()
	} else if _, err := x.Host.Stat(config); err != nil {
		add(fail("handler "+name+": "+oneLine(err), "write that file (cofferctl config default shim), or correct options.ConfigPath"))
	}
	if examined := x.Paths.Shim; examined != "" && examined != config {
		add(warn(fmt.Sprintf("handler %s uses %s, and %s was examined", name, config, examined), "examine it too: cofferctl doctor --config "+config))
	}
	if all == nil {
		return ok("handler " + name + " is complete")
	}
	return all
}

// defaultConfig is what the shim reads for handlers that name no file: what containerd sets in its environment, else the
// usual place.
func (x *Examination) defaultConfig() string {
	for _, variable := range x.containerd.Plugins.Shims.Env {
		if path, ok := strings.CutPrefix(variable, "COFFER_SHIM_CONFIG="); ok {
			return path
		}
	}
	return shim.DefaultPath
}
