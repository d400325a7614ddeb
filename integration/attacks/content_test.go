package attacks

import (
	"strings"
	"testing"

	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/guestpull/policy"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

// content stands in every place of a request in which something confidential may be: values of variables, arguments, files, input.
const content = "content-of-the-pod-93f1"

// loaded is a request with content, which is refused for a reason of the host's making.
func loaded(g *guest, name string, spoil func(*agentpb.CreateContainerRequest)) *agentpb.CreateContainerRequest {
	r := g.request("c1", name)
	r.OCI.Process.Args = append(r.OCI.Process.Args, content, "--password="+content)
	r.OCI.Process.Env = append(r.OCI.Process.Env, "TOKEN="+content, "SEALED=sealed."+content)
	r.OCI.Annotations["io.katacontainers.note"] = content
	if spoil != nil {
		spoil(r)
	}
	return r
}

// TestRefusalsHoldNoContent: an error that leaves the guest, and its log at the most talkative level, tell a class and a reason under every
// policy, and no content of the request or of the image.
func TestRefusalsHoldNoContent(t *testing.T) {
	spoils := map[string]func(*agentpb.CreateContainerRequest){
		"as it is":        nil,
		"half a variable": func(r *agentpb.CreateContainerRequest) { r.OCI.Process.Env = append(r.OCI.Process.Env, content) },
		"zero byte": func(r *agentpb.CreateContainerRequest) {
			r.OCI.Process.Env = append(r.OCI.Process.Env, "A="+content+"\x00")
		},
		"zero argument": func(r *agentpb.CreateContainerRequest) {
			r.OCI.Process.Args = append(r.OCI.Process.Args, content+"\x00")
		},
		"hooks": func(r *agentpb.CreateContainerRequest) {
			r.OCI.Hooks = &oci.Hooks{Prestart: []*oci.Hook{{Path: "/bin/sh", Args: []string{content}, Env: []string{"A=" + content}}}}
		},
		"kernel variable": func(r *agentpb.CreateContainerRequest) {
			r.OCI.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|" + content}
		},
		"limit": func(r *agentpb.CreateContainerRequest) {
			r.OCI.Process.Rlimits = []*oci.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1, Soft: 2}}
		},
		"no arguments": func(r *agentpb.CreateContainerRequest) { r.OCI.Process.Args = nil },
		"sealed file": func(r *agentpb.CreateContainerRequest) {
			r.OCI.Process.Env = r.OCI.Process.Env[:0]
			source := strings.TrimSuffix(r.OCI.Root.Path, "c1/rootfs") + "shared/containers/c1-creds"
			r.OCI.Mounts = append(r.OCI.Mounts, &oci.Mount{Destination: "/creds", Source: source, Type: "bind"})
		},
	}
	for name, engine := range map[string]func(*testing.T, *registry) policy.Engine{
		"the owner's": func(t *testing.T, images *registry) policy.Engine { t.Helper(); return generated(t, images) },
		"strict":      func(*testing.T, *registry) policy.Engine { return policy.NewStrict() },
		"none":        func(*testing.T, *registry) policy.Engine { return policy.NewBuiltin() },
	} {
		t.Run(name, func(t *testing.T) {
			images := newRegistry(t)
			app := images.images["registry.test/app:1"]
			app.config.Env, app.config.Cmd = append(app.config.Env, "IMAGE="+content), []string{content}
			images.images["registry.test/app:1"] = app
			g := newGuest(t, engine(t, images), images)
			_, _ = g.CopyFile(t.Context(), &agentpb.CopyFileRequest{
				Path: g.base + "/shared/containers/c1-creds/key", FileMode: 0o100600, FileSize: int64(len(content) + 7), Data: []byte("sealed." + content),
			}) // strict policies know another folder
			if name == "the owner's" { // which asks for these before it looks at the app's process
				g.run(t, "s", "setup")
				g.remove(t, "s")
				g.run(t, "p", "proxy")
			}
			var told []error
			for what, spoil := range spoils {
				_, err := g.CreateContainer(t.Context(), loaded(g, "app", spoil))
				if err == nil && what != "half a variable" {
					t.Errorf("%s: the container was made", what)
				}
				if err == nil {
					g.remove(t, "c1")
				}
				told = append(told, err)
			}
			_, err := g.ExecProcess(t.Context(), &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e1", Process: &oci.Process{
				Args: []string{content}, Env: []string{"A=" + content, content}, User: &oci.User{},
			}})
			told = append(told, err)
			_, err = g.WriteStdin(t.Context(), &agentpb.WriteStreamRequest{ContainerId: "c1", Data: []byte(content)})
			told = append(told, err)
			_, err = g.CopyFile(t.Context(), &agentpb.CopyFileRequest{Path: "/etc/x", FileMode: 0o100600, FileSize: 1, Data: []byte(content)})
			told = append(told, err)
			_, err = g.SetPolicy(t.Context(), &agentpb.SetPolicyRequest{Policy: content})
			told = append(told, err)
			_, err = g.SetIPTables(t.Context(), &agentpb.SetIPTablesRequest{Data: []byte(content)})
			told = append(told, err)
			for _, err := range told {
				if text := status.Convert(err).Proto().String(); strings.Contains(text, content) {
					t.Errorf("the host is told %s", text)
				}
			}
			g.noContentInLog(t)
		})
	}
}

// noContentInLog looks at what the guest has logged of the calls that are answered.
func (g *guest) noContentInLog(t *testing.T) {
	t.Helper()
	log := g.log.String()
	if !strings.Contains(log, "call refused or failed") {
		t.Error("nothing of the refusals is in the log")
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, content) {
			t.Errorf("the log holds %s", line)
		}
	}
}
