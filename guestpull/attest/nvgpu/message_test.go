package nvgpu

import (
	"strings"
	"testing"
)

// Whatever the program says, what is believed of it fits into logs and files.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"version":1,"gpus":[{"index":0,"uuid":"GPU-0","name":"NVIDIA H100","arch":"HOPPER","address":"0000:01:00.0"}]}`), uint8(0))
	f.Add([]byte(`{"version":1,"state":{"mode":"on","multi_gpu":"ppcie","production":true,"ready":false,"driver":"550.144.03"}}`), uint8(1))
	f.Add([]byte(`{"version":1,"evidence":{"device_evidence_list":[{"arch":"LS10","uuid":"x","evidence":"AAAA","certificate":"AAAA"}]}}`), uint8(2))
	f.Add([]byte(`{"version":1,"failure":{"class":"unavailable","message":"x"}}`), uint8(3))
	ops := []Op{OpGPUs, OpState, OpEvidence, OpSetReady}
	f.Fuzz(func(t *testing.T, text []byte, op uint8) {
		a, err := decode(text, ops[int(op)%len(ops)])
		if err != nil {
			if a != nil {
				t.Fatal("an error and an answer")
			}
			return
		}
		if a.Failure != nil {
			t.Fatal("a failure without an error")
		}
		if a.GPUs != nil && checkGPUs(*a.GPUs) == nil {
			for _, g := range *a.GPUs {
				if strings.ContainsAny(g.UUID+g.Name+g.Address, "\x00\n\"'\\$`") {
					t.Fatalf("believed %+v", g)
				}
			}
		}
		if a.State != nil {
			_ = checkState(*a.State)
		}
		if a.Evidence != nil {
			_ = checkEvidence(a.Evidence)
		}
	})
}
