package origin

import (
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestArguments(t *testing.T) {
	both := ocispec.ImageConfig{Entrypoint: []string{"/app", "-v"}, Cmd: []string{"serve"}}
	cases := map[string]struct {
		config ocispec.ImageConfig
		stated []string
		want   string
		origin Origin
	}{
		"as the image says":           {both, []string{"/app", "-v", "serve"}, "/app -v serve", Image},
		"nothing stated":              {both, nil, "/app -v serve", Image},
		"other arguments":             {both, []string{"/app", "-v", "dump", "secrets"}, "/app -v dump secrets", Entrypoint},
		"no arguments":                {both, []string{"/app", "-v"}, "/app -v", Entrypoint},
		"part of the entry point":     {both, []string{"/app", "serve"}, "/app serve", Host},
		"other command":               {both, []string{"/bin/sh"}, "/bin/sh", Host},
		"command alone":               {ocispec.ImageConfig{Cmd: []string{"serve"}}, []string{"serve"}, "serve", Image},
		"command with more":           {ocispec.ImageConfig{Cmd: []string{"serve"}}, []string{"serve", "x"}, "serve x", Host},
		"image says nothing":          {ocispec.ImageConfig{}, []string{"serve"}, "serve", Host},
		"neither says anything":       {ocispec.ImageConfig{}, nil, "", Image},
		"words that only look equal ": {both, []string{"/app -v serve"}, "/app -v serve", Host},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			process := &specs.Process{Args: tc.stated}
			if p := Merge(&tc.config, process); p.Args != tc.origin || strings.Join(process.Args, " ") != tc.want {
				t.Errorf("%q from %s, want %q from %s", process.Args, p.Args, tc.want, tc.origin)
			}
		})
	}
}

func TestWorkingDir(t *testing.T) {
	cases := map[string]struct {
		image, stated, want string
		origin              Origin
	}{
		"same":                 {"/srv", "/srv", "/srv", Image},
		"not stated":           {"/srv/", "", "/srv", Image},
		"neither":              {"", "", "/", Image},
		"engine's default":     {"", "/", "/", Image},
		"other":                {"/srv", "/", "/", Host},
		"relative in image":    {"srv", "", "/srv", Image},
		"image leaves by dots": {"/srv/../..", "", "/", Image},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			process := &specs.Process{Cwd: tc.stated}
			if p := Merge(&ocispec.ImageConfig{WorkingDir: tc.image}, process); p.WorkingDir != tc.origin || process.Cwd != tc.want {
				t.Errorf("%q from %s, want %q from %s", process.Cwd, p.WorkingDir, tc.want, tc.origin)
			}
		})
	}
}

// TestEnvironment has lists as container engines write them.
func TestEnvironment(t *testing.T) {
	image := []string{"PATH=/bin", "MODE=safe", "LANG=C"}
	cases := map[string]struct {
		image, stated []string
		want          string
		origins       string
	}{
		"CRI without variables of the pod": {
			image, []string{"PATH=/bin", "HOSTNAME=pod", "MODE=safe", "LANG=C"},
			"PATH=/bin HOSTNAME=pod MODE=safe LANG=C", "image,engine,image,image",
		},
		"CRI with variables of the pod": {
			image, []string{"PATH=/bin", "TERM=xterm", "MODE=safe", "LANG=C", "OWN=1", "LANG=de"},
			"PATH=/bin TERM=xterm MODE=safe LANG=de OWN=1", "image,engine,image,overridden,host",
		},
		"CRI with a path of the pod":  {image, []string{"PATH=/opt", "MODE=safe", "LANG=C"}, "PATH=/opt MODE=safe LANG=C", "overridden,image,image"},
		"copy of the config tampered": {image, []string{"PATH=/bin", "MODE=evil", "LANG=C"}, "PATH=/bin MODE=evil LANG=C", "image,altered,image"},
		"variables left out":          {image, []string{"LANG=C"}, "PATH=/bin MODE=safe LANG=C", "restored,restored,image"},
		"nothing stated":              {image, nil, "PATH=/bin MODE=safe LANG=C", "restored,restored,restored"},
		"image without variables":     {nil, []string{"PATH=/usr/bin", "A=b"}, "PATH=/usr/bin A=b", "engine,host"},
		"last one counts":             {nil, []string{"A=1", "A=2", "A=3"}, "A=3", "host"},
		"override back to the same":   {image[:1], []string{"PATH=/x", "PATH=/bin"}, "PATH=/bin", "image"},
		"emptied":                     {image[1:2], []string{"MODE="}, "MODE=", "altered"},
		"twice in the image":          {[]string{"A=1", "A=2"}, []string{"A=2"}, "A=2", "image"},
		"no variables in the image":   {[]string{"A", "=b", ""}, nil, "", ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			process := &specs.Process{Env: tc.stated}
			p := Merge(&ocispec.ImageConfig{Env: tc.image}, process)
			var origins []string
			for _, v := range p.Env {
				origins = append(origins, string(v.Origin))
			}
			if got := strings.Join(process.Env, " "); got != tc.want {
				t.Errorf("environment %q, want %q", got, tc.want)
			}
			if got := strings.Join(origins, ","); got != tc.origins {
				t.Errorf("origins %q, want %q", got, tc.origins)
			}
		})
	}
}

func TestUser(t *testing.T) {
	p := &Process{}
	for name, tc := range map[string]struct {
		runs, verified specs.User
		want           Origin
	}{
		"same":         {specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{2}}, specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{2}}, Image},
		"other user":   {specs.User{UID: 0, GID: 2}, specs.User{UID: 1, GID: 2}, Host},
		"other group":  {specs.User{UID: 1}, specs.User{UID: 1, GID: 2}, Host},
		"more groups":  {specs.User{AdditionalGids: []uint32{0, 9}}, specs.User{AdditionalGids: []uint32{0}}, Host},
		"fewer groups": {specs.User{}, specs.User{AdditionalGids: []uint32{9}}, Host},
		"own group":    {specs.User{GID: 7, AdditionalGids: []uint32{9}}, specs.User{GID: 7, AdditionalGids: []uint32{7, 9}}, Image},
	} {
		if p.JudgeUser(tc.runs, tc.verified); p.User != tc.want {
			t.Errorf("%s: %s, want %s", name, p.User, tc.want)
		}
	}
}

// FuzzEnvironment: whatever the two lists hold, each variable is there once, and none of the image's is lost.
func FuzzEnvironment(f *testing.F) {
	f.Add("PATH=/bin\nA=b", "A=c\nA=d\nHOSTNAME=x")
	f.Add("A\n=\n", "A\n=b\n")
	f.Fuzz(func(t *testing.T, image, stated string) {
		config := ocispec.ImageConfig{Env: strings.Split(image, "\n")}
		process := &specs.Process{Env: strings.Split(stated, "\n")}
		p := Merge(&config, process)
		seen := map[string]bool{}
		for _, v := range p.Env {
			if seen[v.Name] {
				t.Errorf("%q is there twice", v.Name)
			}
			seen[v.Name] = true
			if v.Origin == Image && !slices.Contains(config.Env, v.Name+"="+v.Value) {
				t.Errorf("%q=%q is not the image's", v.Name, v.Value)
			}
		}
		for _, entry := range config.Env {
			if name, _, ok := strings.Cut(entry, "="); ok && name != "" && !seen[name] {
				t.Errorf("%q is lost", name)
			}
		}
	})
}
