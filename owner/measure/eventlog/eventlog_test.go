package eventlog

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func file(tb testing.TB, name string) []byte {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// The registers are those that the logs' makers publish with them.
func TestReplayGivesThePublishedRegisters(t *testing.T) {
	none := hex.EncodeToString(make([]byte, 48))
	for name, want := range map[string][Registers]string{
		"ccel-tdshim.bin": {
			"2dc712306a963eadb894ad47dbaa17df44814151555aee11cbb843becca88950ffd079664902e6f22c66f7c8213543f4",
			"0fa3be56af61208bbd179dc7b124988eb929319154663c539d6f46445ecac2fec287075047ff7bd1922829fec28cd3cf", none, none,
		},
		"ccel-ovmf.bin": {
			"8566f998798db09443b244c62de9a3041fb02e2e6936c4396d784bba2e90177329ec5aba3bb484404f2ab9cc90abe193",
			"775b9f6bfe99f8a31396f0d0218e67ffa796d3b96ccf961cbb0deba48c79c00f082cda1a5567c1c16305f1fc210c13c6",
			"94eaf7a7bf398ed8d888c91057ae0261802e4f3df084213a76ca7f0b5055ac9d2241de43cd58d9e8b49c503bbf25f34a", none,
		},
	} {
		t.Run(name, func(t *testing.T) {
			log, err := Parse(file(t, name))
			if err != nil {
				t.Fatal(err)
			}
			registers := log.Replay()
			for i := range want {
				if got := hex.EncodeToString(registers[i][:]); got != want[i] {
					t.Errorf("RTMR %d is %s, want %s", i, got, want[i])
				}
			}
		})
	}
}

// The digests of separators are those of their data, which tells that digests, types and data are read from the right places.
func TestOVMF(t *testing.T) {
	log, err := Parse(file(t, "ccel-ovmf.bin"))
	if err != nil {
		t.Fatal(err)
	}
	const separator = 4
	found := 0
	for _, e := range log.Events {
		if e.Type == separator {
			found++
			if e.Digest != sha512.Sum384(e.Data) {
				t.Errorf("separator %x has digest %x", e.Data, e.Digest)
			}
		}
	}
	if found == 0 || len(log.Events) < 10 {
		t.Errorf("%d events, %d of them separators", len(log.Events), found)
	}
}

func TestParseRefuses(t *testing.T) {
	good := file(t, "ccel-tdshim.bin")
	begin := 32 + int(binary.LittleEndian.Uint32(good[28:])) // of the first event of the new form
	edit := func(at int, value ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], value)
		return out
	}
	many := bytes.Clone(good[:begin])
	event := binary.LittleEndian.AppendUint32(nil, 1)
	event = append(event, good[begin+4:begin+14]...)
	event = append(event, make([]byte, 48+4)...)
	for range MaxEvents + 1 {
		many = append(many, event...)
	}
	for name, raw := range map[string][]byte{
		"empty":              nil,
		"header only begun":  good[:20],
		"other signature":    edit(32, 'X'),
		"other first type":   edit(4, 4),
		"other algorithm":    edit(60, 0x0b),
		"other digest size":  edit(62, 32),
		"header too long":    edit(28, 0xff, 0xff, 0xff, 0xff),
		"register 0":         edit(begin, 0),
		"register 5":         edit(begin, 5),
		"no digest":          edit(begin+8, 0),
		"two digests":        edit(begin+8, 2),
		"event's algorithm":  edit(begin+12, 0x0b),
		"event too long":     edit(begin+62, 0xff, 0xff, 0xff, 0xff),
		"ends in an event":   good[:begin+40],
		"too many events":    many,
		"too large":          make([]byte, MaxSize+1),
		"bytes after events": append(bytes.Clone(good[:len(good)-64]), 1, 2, 3),
	} {
		if log, err := Parse(raw); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %+v, %v", name, log, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(file(f, "ccel-tdshim.bin"))
	f.Add(file(f, "ccel-ovmf.bin"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		log, err := Parse(raw)
		if err != nil {
			return
		}
		if len(log.Events) > MaxEvents {
			t.Errorf("%d events", len(log.Events))
		}
		log.Replay()
	})
}
