package keyprovider

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/containerd/ttrpc"
)

type echo struct{}

func (echo) WrapKey(_ context.Context, in *KeyProviderKeyWrapProtocolInput) (*KeyProviderKeyWrapProtocolOutput, error) {
	return answer("wrap:", in), nil
}

func (echo) UnWrapKey(_ context.Context, in *KeyProviderKeyWrapProtocolInput) (*KeyProviderKeyWrapProtocolOutput, error) {
	return answer("unwrap:", in), nil
}

func answer(prefix string, in *KeyProviderKeyWrapProtocolInput) *KeyProviderKeyWrapProtocolOutput {
	return &KeyProviderKeyWrapProtocolOutput{
		KeyProviderKeyWrapProtocolOutput: append([]byte(prefix), in.GetKeyProviderKeyWrapProtocolInput()...),
	}
}

func TestService(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	RegisterKeyProviderServiceService(server, echo{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(t.Context(), listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	conn, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	raw := ttrpc.NewClient(conn)
	t.Cleanup(func() { _ = raw.Close() })
	client := NewKeyProviderServiceClient(raw)

	in := &KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte("key")}
	for want, call := range map[string]func(context.Context, *KeyProviderKeyWrapProtocolInput) (*KeyProviderKeyWrapProtocolOutput, error){
		"wrap:key": client.WrapKey, "unwrap:key": client.UnWrapKey,
	} {
		out, err := call(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(out.GetKeyProviderKeyWrapProtocolOutput()); got != want {
			t.Errorf("answer is %q, want %q", got, want)
		}
	}
	// The name is the contract: ocicrypt and guest-components call it so.
	var out KeyProviderKeyWrapProtocolOutput
	if err := raw.Call(t.Context(), "keyprovider.KeyProviderService", "UnWrapKey", in, &out); err != nil {
		t.Error(err)
	}
}
