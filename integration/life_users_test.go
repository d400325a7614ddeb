package integration

import (
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// peopled is a layer with users and groups, and with folders that some of them own.
func peopled() registrytest.Layer {
	return registrytest.NewLayer(registrytest.Gzip,
		registrytest.Entry{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1001:App:/home/app:/bin/sh\n"},
		registrytest.Entry{Name: "etc/group", Body: "root:x:0:\nnogroup:x:65534:\napp:x:1001:\ncrew:x:50:\nextra:x:50000:other,app\n"},
		registrytest.Entry{Name: "data/", Mode: 0o750, UID: 1000, GID: 1001},
		registrytest.Entry{Name: "data/seed", Body: "from the image\n", UID: 1000, GID: 1001},
	)
}

// peopledImage pushes an image of busybox and peopled layers and pulls it for the lab's pod. All have the same layers, so
// that nothing but their configurations tells them apart.
func (l *lab) peopledImage(t *testing.T, name string, config ocispec.ImageConfig) string {
	t.Helper()
	layout := configuredLayout(t, l.node, config, peopled())
	reference := l.node.HTTP.Host + "/users/" + name + ":v1"
	if err := l.node.Ctl(t.Context(), true, "image", "copy", "oci:"+layout.Dir, reference, "--plain-http"); err != nil {
		t.Fatal(err)
	}
	if err := l.pod.Pull(l.ctx(t), reference); err != nil {
		t.Fatal(err)
	}
	return reference
}

// wantUser checks who CRI says that a container runs as: uid:gid [groups].
func (l *lab) wantUser(t *testing.T, c *harness.Container, when, want string) {
	t.Helper()
	status, err := c.Status(l.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	user := status.GetUser().GetLinux()
	if got := fmt.Sprintf("%d:%d %v", user.GetUid(), user.GetGid(), user.GetSupplementalGroups()); got != want {
		t.Errorf("%s: the status says %s, want %s", when, got, want)
	}
}

// TestImageConfig runs images of which only the guest can read what they say of users and volumes.
func TestImageConfig(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	l := newLab(t, node, "coffer", encryptedImage(t, node), func(config *runtime.PodSandboxConfig) {
		config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	})
	t.Run("users", func(t *testing.T) { imageUsers(t, l) })
	t.Run("volumes", func(t *testing.T) { imageVolumes(t, l) })
}

// imageUsers runs containers as all kinds of users, which only the guest can look up.
func imageUsers(t *testing.T, l *lab) {
	t.Helper()
	named := l.peopledImage(t, "named", ocispec.ImageConfig{User: "app:crew", WorkingDir: "/srv/missing"})
	numbered := l.peopledImage(t, "numbered", ocispec.ImageConfig{User: "1000"})
	nobodys := l.peopledImage(t, "nobodys", ocispec.ImageConfig{User: "ghost"})

	const who = "id -u; id -g; id -G; echo $HOME"
	groups := statusOf("Groups")
	user := func(id int64) *runtime.Int64Value { return &runtime.Int64Value{Value: id} }
	for name, tc := range map[string]struct {
		image   string
		edit    func(*runtime.LinuxContainerSecurityContext)
		answers map[string]string
		status  string // the user that CRI reports
	}{
		"the image's name and group": {
			image: named,
			answers: map[string]string{
				who: "1000\n50\n50 50000\n/home/app", groups: "50 50000", "pwd": "/srv/missing",
				"stat -c '%u:%g %a' . /srv": "0:0 755\n0:0 755", "env | grep -c SHELL; true": "0",
			},
			status: "1000:50 [50 50000]",
		},
		"the image's number": {
			image:   numbered,
			answers: map[string]string{who: "1000\n1001\n1001 50000\n/home/app", groups: "1001 50000"},
			status:  "1000:1001 [1001 50000]",
		},
		"a number and more groups": {
			image: numbered,
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUser, s.SupplementalGroups = user(1000), []int64{7}
			},
			answers: map[string]string{who: "1000\n1001\n1001 7 50000\n/home/app", groups: "7 1001 50000"},
			status:  "1000:1001 [7 1001 50000]",
		},
		"a number and strict groups": {
			image: numbered,
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUser, s.SupplementalGroups = user(1000), []int64{7}
				s.SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Strict
			},
			answers: map[string]string{who: "1000\n1001\n1001 7\n/home/app", groups: "7 1001"},
			status:  "1000:1001 [7 1001]",
		},
		"a number with the super-user's group": {
			image: numbered,
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = user(1000), user(0)
			},
			answers: map[string]string{who: "1000\n0\n0 50000\n/home/app"},
			status:  "1000:0 [0 50000]",
		},
		"a number that only the guest can find, and its group": {
			image:   named,
			edit:    func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser = user(1000) },
			answers: map[string]string{who: "1000\n1001\n1001 50000\n/home/app"},
			status:  "1000:1001 [1001 50000]",
		},
		"a number that only the guest can find, with the super-user's group": {
			image: named,
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = user(1000), user(0)
			},
			answers: map[string]string{who: "1000\n0\n0 50000\n/home/app"},
			status:  "1000:0 [0 50000]",
		},
		"a number that nobody knows": {
			image:   named,
			edit:    func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsGroup = user(4242), user(4243) },
			answers: map[string]string{who: "4242\n4243\n4243\n/", groups: "4243"},
			status:  "4242:4243 [4243]",
		},
		"a name that is asked for": {
			image:   numbered,
			edit:    func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody" },
			answers: map[string]string{who: "65534\n65534\n65534\n/", groups: "65534"},
			status:  "65534:65534 [65534]",
		},
		"the name of the image, asked for with a group": {
			image: named,
			edit: func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUsername, s.RunAsGroup = "app", user(9)
				s.SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Strict
			},
			answers: map[string]string{who: "1000\n9\n9\n/home/app", groups: "9"},
			status:  "1000:9 [9]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := l.sleeper(t, func(c *runtime.ContainerConfig) {
				c.Image.Image, c.Image.UserSpecifiedImage = tc.image, tc.image
				if tc.edit != nil {
					tc.edit(c.Linux.SecurityContext)
				}
			})
			l.wantUser(t, c, "once it runs", tc.status)
			if _, err := l.node.CRI.Runtime.UpdateContainerResources(l.ctx(t), &runtime.UpdateContainerResourcesRequest{
				ContainerId: c.ID, Linux: &runtime.LinuxContainerResources{CpuShares: 512},
			}); err != nil {
				t.Fatal(err)
			}
			l.wantUser(t, c, "after an update of its resources", tc.status)
			l.answer(t, c, tc.answers)
			l.removeContainer(t, c)
		})
	}
	for name, tc := range map[string]struct{ image, user, want string }{
		"the image names a user that it does not have": {image: nobodys, want: `user "ghost" is not in the image`},
		"a well-known user that the image lacks":       {image: named, user: "postgres", want: `user "postgres" is not in the image`},
		"a user that nobody knows":                     {image: named, user: "stranger", want: "no users found"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := l.tryCreate(t, func(c *runtime.ContainerConfig) {
				c.Image.Image, c.Image.UserSpecifiedImage = tc.image, tc.image
				c.Linux.SecurityContext.RunAsUsername = tc.user
			}, "/bin/true")
			if err == nil { // the guest is asked at the start
				err = c.Start(l.ctx(t))
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}
