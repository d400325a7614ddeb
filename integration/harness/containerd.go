package harness

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// containerdConfig is written for a node whose every path lies under one folder.
var containerdConfig = template.Must(template.New("containerd").Parse(`version = 3
root = '{{.Root}}'
state = '{{.State}}'
imports = [{{range .Imports}}'{{.}}', {{end}}]
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.differ.v1.erofs', 'io.containerd.snapshotter.v1.blockfile']

[grpc]
  address = '{{.Socket}}'
[ttrpc]
  address = '{{.Socket}}.ttrpc'
[debug]
  level = 'debug'

[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '{{.ShimSockets}}'
  env = ['PATH={{.Path}}', 'COFFER_SHIM_CONFIG={{.ShimConfig}}']

[plugins.'io.containerd.cri.v1.images']
  snapshotter = '{{.Snapshotter}}'
{{- if .LocalPull}}
  disable_snapshot_annotations = false
{{- end}}
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{{.Pause}}'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '{{.Hosts}}'

[plugins.'io.containerd.transfer.v1.local']
  config_path = '{{.Hosts}}'

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{{.CNIPlugins}}']
    conf_dir = '{{.CNIConf}}'
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = '{{.Runc}}'
{{- range $name, $config := .Handlers}}
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{{$name}}]
      runtime_type = 'io.containerd.coffer.v2'
      snapshotter = 'coffer'
      sandboxer = 'shim'
      disable_pause_image_pull = true
      pod_annotations = ['io.katacontainers.*']
      privileged_without_host_devices = true
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{{$name}}.options]
        ConfigPath = '{{$config}}'
{{- end}}
`))

// cniConfig gives pods addresses on the bridge that the node's own servers listen on.
const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "coffer",
  "plugins": [{
    "type": "bridge", "bridge": "%s", "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": {"type": "host-local", "dataDir": "%s", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }, {
    "type": "portmap", "capabilities": {"portMappings": true}
  }]
}
`

// containerdPaths is what the template and the leftover check need to know.
type containerdPaths struct {
	Root, State, Socket            string
	ShimSockets, ShimConfig        string
	Hosts, CNIPlugins, CNIConf     string
	Runc, Path, Pause, Snapshotter string
	LocalPull                      bool
	// Imports are the files that add Coffer.
	Imports []string
	// Handlers are the files of further runtime handlers, by their names.
	Handlers map[string]string
}

func (n *Node) writeContainerdConfig() (string, error) {
	p := containerdPaths{
		Root: n.path("containerd"), State: n.path("run"), Socket: n.path("containerd.sock"),
		ShimSockets: n.path("s"), ShimConfig: n.path("shim.toml"), Hosts: n.path("hosts"), CNIPlugins: n.Tools.CNIPlugins, CNIConf: n.path("cni"),
		Runc: n.Tools.Runc, Path: n.searchPath(), LocalPull: n.options.LocalPull, Pause: PauseImage,
		Snapshotter: cmp.Or(n.options.Snapshotter, "overlayfs"),
		Handlers:    map[string]string{},
	}
	var err error
	if p.Imports, err = n.writeDropIns(); err != nil {
		return "", err
	}
	for name := range n.options.Handlers {
		p.Handlers[name] = n.shimConfigPath(name)
	}
	for _, dir := range []string{p.Hosts, p.CNIConf, p.ShimSockets} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", err
		}
	}
	cni := fmt.Sprintf(cniConfig, bridgeName, n.path("ipam"), podSubnet)
	if err := os.WriteFile(filepath.Join(p.CNIConf, "10-coffer.conflist"), []byte(cni), 0o600); err != nil {
		return "", err
	}
	var text strings.Builder
	if err := containerdConfig.Execute(&text, p); err != nil {
		return "", err
	}
	path := n.path("containerd.toml")
	return path, os.WriteFile(path, []byte(text.String()), 0o600)
}

// TrustRegistry writes the hosts.toml by which the host's containerd reaches a registry.
func (n *Node) TrustRegistry(host string, plain bool) error {
	dir := filepath.Join(n.path("hosts"), host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text := fmt.Sprintf("server = %q\n", "http://"+host)
	if !plain {
		text = fmt.Sprintf("server = %q\n[host.%q]\n  ca = %q\n", "https://"+host, "https://"+host, n.CA.Path)
	}
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600)
}

// StartContainerd starts containerd on the node's state; it is for use after Containerd was stopped or killed.
func (n *Node) StartContainerd(ctx context.Context) error {
	config, err := n.writeContainerdConfig()
	if err != nil {
		return err
	}
	cmd := n.ns.command(n.Tools.Containerd, "--config", config)
	cmd.Env = append(os.Environ(), "PATH="+n.searchPath())
	n.Containerd, err = startProcess(ctx, n.Dir, "containerd", cmd)
	return err
}

// searchPath lets containerd find our shim and runc's before anything that the machine may have installed.
func (n *Node) searchPath() string {
	return strings.Join([]string{n.Tools.BuildBin, n.Tools.CacheBin, os.Getenv("PATH")}, ":")
}
