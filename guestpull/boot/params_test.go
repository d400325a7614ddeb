package boot

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/extension"
	"github.com/coffer-project/coffer/guestpull/gpu"
	"github.com/coffer-project/coffer/guestpull/scratch"
)

func TestParseParams(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	tests := map[string]struct {
		cmdline string
		want    func(*Params)
		wantErr error
	}{
		"nothing":          {"console=ttyS0 quiet panic=-1", func(*Params) {}, nil},
		"level":            {"agent.log=debug", func(p *Params) { p.LogLevel = log.DebugLevel }, nil},
		"timeouts":         {"agent.image_pull_timeout=7 agent.hotplug_timeout=1", func(p *Params) { p.ImagePullTimeout, p.HotplugTimeout = 7*time.Second, time.Second }, nil},
		"proxy":            {"agent.https_proxy=http://p:3128/?a=b agent.no_proxy=.local", func(p *Params) { p.HTTPSProxy, p.NoProxy = "http://p:3128/?a=b", ".local" }, nil},
		"digest":           {"coffer.initdata_digest=sha256:" + sum, func(p *Params) { p.InitDataDigest.Algorithm = "sha256"; p.InitDataDigest.Sum = repeat(0xab, 32) }, nil},
		"scratch":          {"coffer.scratch=authenticated", func(p *Params) { p.Scratch = scratch.Authenticated }, nil},
		"scratch, unknown": {"coffer.scratch=plain", nil, errdefs.ErrInvalidArgument},
		"scratch, nothing": {"coffer.scratch", nil, errdefs.ErrInvalidArgument},
		"kata's, unused":   {"agent.trace agent.devmode=1 agent.trace", func(p *Params) { p.Ignored = []string{"agent.devmode", "agent.trace"} }, nil},
		"kernel's pipe":    {"agent.container_pipe_size=0", func(p *Params) { p.PipeSize = 0 }, nil},
		"gpus": {"nvrc.smi.lgc=1500 nvrc.smi.lmc=1593 nvrc.smi.pl=300 nvrc.uvm.persistence.mode=off nvrc.dcgm=on nvrc.log=debug", func(p *Params) {
			p.GPU = gpu.Params{CoreClock: 1500, MemoryClock: 1593, PowerLimit: 300, DCGM: true, Verbose: true}
		}, nil},
		"gpus ready by decree": {"nvrc.smi.srs=1", func(p *Params) { p.Ignored = []string{"nvrc.smi.srs"} }, nil},
		"gpus, bad clock":      {"nvrc.smi.lgc=fast", nil, errdefs.ErrInvalidArgument},
		"gpus, bad switch":     {"nvrc.dcgm=perhaps", nil, errdefs.ErrInvalidArgument},
		"extension": {"kata.extension.gpu.verity_params=root_hash=" + sum + ",salt=,data_blocks=9,data_block_size=4096,hash_block_size=512", func(p *Params) {
			p.Extensions = []extension.Image{{Name: "gpu", RootHash: repeat(0xab, 32), Salt: []byte{}, DataBlocks: 9, DataBlockSize: 4096, HashBlockSize: 512}}
		}, nil},
		"extension, unmeasured": {"kata.extension.gpu.verity_params", nil, errdefs.ErrInvalidArgument},
		"ours, unknown":         {"coffer.debug_shell", nil, errdefs.ErrInvalidArgument},
		"twice":                 {"agent.log=info agent.log=debug", nil, errdefs.ErrInvalidArgument},
		"bad level":             {"agent.log=trace", nil, errdefs.ErrInvalidArgument},
		"zero timeout":          {"agent.cdi_timeout=0", nil, errdefs.ErrInvalidArgument},
		"endless timeout":       {"agent.cdi_timeout=4294967295", nil, errdefs.ErrInvalidArgument},
		"negative timeout":      {"agent.launch_process_timeout=-1", nil, errdefs.ErrInvalidArgument},
		"large pipe":            {"agent.container_pipe_size=1048577", nil, errdefs.ErrInvalidArgument},
		"digest, wrong size":    {"coffer.initdata_digest=sha384:" + sum, nil, errdefs.ErrInvalidArgument},
		"digest, no hex":        {"coffer.initdata_digest=sha256:" + strings.Repeat("zz", 32), nil, errdefs.ErrInvalidArgument},
		"digest, unknown sum":   {"coffer.initdata_digest=md5:" + strings.Repeat("ab", 16), nil, errdefs.ErrInvalidArgument},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseParams(tt.cmdline)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("error %v, want %v", err, tt.wantErr)
			}
			if tt.want == nil {
				return
			}
			want := Params{
				LogLevel: log.InfoLevel, ImagePullTimeout: 20 * time.Minute, HotplugTimeout: 10 * time.Second,
				CDITimeout: 100 * time.Second, LaunchTimeout: 6 * time.Second, PipeSize: 256 << 10,
				GPU: gpu.DefaultParams(),
			}
			tt.want(&want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func repeat(b byte, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}

func FuzzParseParams(f *testing.F) {
	f.Add("console=ttyS0 agent.log=debug coffer.initdata_digest=sha256:00 agent.x")
	f.Fuzz(func(t *testing.T, cmdline string) {
		p, err := ParseParams(cmdline)
		if err != nil {
			return
		}
		if size, known := digestSizes[p.InitDataDigest.Algorithm]; p.InitDataDigest.Algorithm != "" && (!known || len(p.InitDataDigest.Sum) != size) {
			t.Errorf("digest %+v was accepted", p.InitDataDigest)
		}
		for _, d := range []time.Duration{p.ImagePullTimeout, p.HotplugTimeout, p.CDITimeout, p.LaunchTimeout} {
			if d <= 0 || d > maxSeconds*time.Second {
				t.Errorf("timeout %v was accepted", d)
			}
		}
	})
}
