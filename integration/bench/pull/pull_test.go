package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/require"
)

// TestMain lets the test's own binary be the registry and the decoder, which the benchmark starts as processes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "serve" || os.Args[1] == "decode") {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestBenchmarkWorks measures tiny images beside a real containerd. Its times mean nothing; what is made of them must.
func TestBenchmarkWorks(t *testing.T) {
	require.Root(t)
	binary := require.Program(t, "../../../bin/coffer-pull", "run make build")
	require.Cached(t, "bin/containerd")
	out := t.TempDir()
	var table bytes.Buffer
	a := app()
	a.Writer = &table
	err := a.RunContext(t.Context(), []string{
		"pull", "--quick", "--runs", "2", "--scaling", "--images", "app-gzip,app-zstd", "--peers", nameContainerd,
		"--coffer-pull", binary, "--cache", t.TempDir(), "--out", out,
	})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(out, "pull.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	checkLimits(t, &r)
	if len(r.Images) != 2 {
		t.Fatalf("%d images, want 2", len(r.Images))
	}
	gz, zst := r.Images[0], r.Images[1]
	if len(gz.Runs) != 4 || gz.Runs[0].Tool != nameCoffer || gz.Runs[1].Tool != nameContainerd || gz.Runs[2].Tool != nameCoffer {
		t.Errorf("runs do not take turns: %+v", gz.Runs)
	}
	if peer := gz.Peers[nameContainerd]; peer.CPU <= 0 || peer.Wall <= 0 || peer.RSS <= 1 || gz.Ratios.CPUContainerd == nil {
		t.Errorf("containerd: %+v, ratio %v", peer, gz.Ratios.CPUContainerd)
	}
	// The blob stays beside what it unpacks to.
	if peer := gz.Peers[nameContainerd]; peer.Target < 1.2 || gz.Coffer.Target < 0.99 || gz.Coffer.Target > 1.2 {
		t.Errorf("peak on the target: containerd %v, coffer %v", peer.Target, gz.Coffer.Target)
	}
	if _, failed := zst.Failed[nameContainerd]; !failed || zst.Ratios.CPUContainerd != nil {
		t.Errorf("containerd is said to have pulled an encrypted zstd image: %+v", zst)
	}
	if len(gz.Runs[0].Phases) == 0 || gz.Coffer.RSS <= 1 {
		t.Errorf("coffer: %+v", gz.Runs[0])
	}
	if !strings.Contains(table.String(), "CPU/BOUND") {
		t.Errorf("table:\n%s", table.String())
	}
	checkScaling(t, &r)
	svg, err := os.ReadFile(filepath.Join(out, "pull.svg"))
	if err != nil {
		t.Fatal(err)
	}
	checkXML(t, svg)
}

func checkLimits(t *testing.T, r *report) {
	t.Helper()
	for _, name := range []string{"sha256", "hmac_sha256", "aes_256_ctr", "receive", "untar_write", "untar_files_per_s", "inflate_app-gzip-quick"} {
		if r.Limits[name] <= 0 {
			t.Errorf("limit %s is %v", name, r.Limits[name])
		}
	}
	for _, img := range r.Images {
		sum := 0.0
		for _, seconds := range img.Bound.Stages {
			sum += seconds
		}
		if sum <= 0 || math.Abs(sum-img.Bound.CPU) > 1e-9 || img.Bound.Wall > img.Bound.CPU || img.Bound.WithReceive <= img.Bound.CPU {
			t.Errorf("%s: bound %+v", img.Name, img.Bound)
		}
		if got, want := img.Ratios.CPUBound, img.Coffer.CPU/img.Bound.CPU; got != want {
			t.Errorf("%s: ratio %v, want %v", img.Name, got, want)
		}
	}
}

func checkXML(t *testing.T, raw []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(raw)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestBound(t *testing.T) {
	s := &speeds{sha: 100, hmac: 50, ctr: 200, receive: 400, write: 100, create: 10, inflate: map[string]float64{"i": 20}}
	img := &image{Name: "i", Layers: []layerSize{{Packed: 100, Tar: 200, Files: 5, Pages: 300}, {Packed: 200, Tar: 200, Files: 0, Pages: 0}}}
	got := s.bound(img, 4)
	// Packed 300: 3 + 6 + 1.5, received 0.75. Tar 400: 4, inflated 20. Untar 0.5 + 3. The largest single stage is 10.
	if got.CPU != 38 || got.WithReceive != 38.75 || got.Wall != 10 {
		t.Errorf("got %+v", got)
	}
	if got := s.bound(img, 2); got.Wall != 19 {
		t.Errorf("two cores: wall %v", got.Wall)
	}
}

func TestMediansAndRatios(t *testing.T) {
	res := &result{Bound: bound{CPU: 2, WithReceive: 4, Wall: 1}, Peers: map[string]summary{}}
	img := &image{Layers: []layerSize{{Pages: 1 << 20}}}
	for i, cpu := range []float64{2, 4, 3} {
		res.add(nameCoffer, i+1, usage{CPU: cpu, Wall: 2, memory: 8 << 20, target: 1 << 20}, img)
		res.add(nameSkopeo, i+1, usage{CPU: 6, Wall: 2, target: 2 << 20}, img)
	}
	res.sum()
	if res.Coffer != (summary{CPU: 3, Wall: 2, RSS: 8, Target: 1}) || res.Peers[nameSkopeo].Target != 2 {
		t.Errorf("coffer %+v, peers %+v", res.Coffer, res.Peers)
	}
	// Pairs are 6/2, 6/4 and 6/3.
	if r := res.Ratios; r.CPUBound != 1.5 || r.CPUReceive != 0.75 || r.WallBound != 2 || r.CPUSkopeo == nil || *r.CPUSkopeo != 2 || r.CPUContainerd != nil {
		t.Errorf("ratios %+v", r)
	}
}

func TestChooseImages(t *testing.T) {
	all, err := chooseImages(nil, false)
	if err != nil || len(all) != 5 {
		t.Fatalf("%d images, %v", len(all), err)
	}
	quick, err := chooseImages([]string{"model-tar"}, true)
	if err != nil || len(quick) != 1 || quick[0].Layers[0].Bytes*quickBy > all[4].Layers[0].Bytes || all[4].Layers[0].Bytes != 512<<20 {
		t.Errorf("quick: %+v, %v", quick, err)
	}
	if _, err := chooseImages([]string{"nonsense"}, false); err == nil {
		t.Error("an unknown image is taken")
	}
}

// checkScaling wants each series, with what changes growing from point to point.
func checkScaling(t *testing.T, r *report) {
	t.Helper()
	if len(r.Scaling) != 3 {
		t.Fatalf("%d series, want 3", len(r.Scaling))
	}
	for _, s := range r.Scaling {
		last := int64(0)
		for _, p := range s.Points {
			if p.N <= last || p.CPU <= 0 || p.Wall <= 0 || p.PerByte <= 0 || p.Speed <= 0 || (s.By == byFiles && last > 0) != (p.PerFile != nil) {
				t.Errorf("by %s: %+v after %d", s.By, p, last)
			}
			last = p.N
		}
		if last == 0 {
			t.Errorf("by %s: no points", s.By)
		}
	}
}
