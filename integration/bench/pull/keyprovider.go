package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	wire "github.com/containers/ocicrypt/keywrap/keyprovider"
	keyproviderpb "github.com/containers/ocicrypt/utils/keyprovider"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/proto/keyprovider"
)

// keyProvider hands the images' keys to tools with ocicrypt. It lives in this process, whose time counts for nobody.
type keyProvider struct {
	keyproviderpb.UnimplementedKeyProviderServiceServer
	server *grpc.Server
	config string
}

func startKeyProvider(scratch string) (*keyProvider, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start key provider: %w", err)
	}
	k := &keyProvider{server: grpc.NewServer(), config: filepath.Join(scratch, "ocicrypt.json")}
	text := fmt.Sprintf(`{"key-providers":{%q:{"grpc":%q}}}`, keyprovider.ProviderName, l.Addr())
	if err := os.WriteFile(k.config, []byte(text), 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	keyproviderpb.RegisterKeyProviderServiceServer(k.server, k)
	go func() { _ = k.server.Serve(l) }() // ends with Stop
	return k, nil
}

func (k *keyProvider) close() { k.server.Stop() }

// UnWrapKey opens one packet of an annotation.
func (k *keyProvider) UnWrapKey(_ context.Context, req *keyproviderpb.KeyProviderKeyWrapProtocolInput) (*keyproviderpb.KeyProviderKeyWrapProtocolOutput, error) {
	var in wire.KeyProviderKeyWrapProtocolInput
	if err := json.Unmarshal(req.GetKeyProviderKeyWrapProtocolInput(), &in); err != nil {
		return nil, err
	}
	packet, err := keyprovider.ParsePacket(in.KeyUnwrapParams.Annotation)
	if err != nil {
		return nil, err
	}
	options, err := packet.Open(kek[:])
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(wire.KeyProviderKeyWrapProtocolOutput{KeyUnwrapResults: wire.KeyUnwrapResults{OptsData: options}})
	return &keyproviderpb.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: out}, err
}

// decodeStep is the size of the reads of imgcrypt's ctd-decoder, in bytes.
const decodeStep = 10 << 10

// decode does for containerd what imgcrypt's ctd-decoder does, with the same library and in the same steps: its command is
// a module of its own that module proxies do not serve. The payload says which layer it is.
func decode(payload io.Reader, in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(payload)
	if err != nil {
		return fmt.Errorf("read payload: %w", err)
	}
	var box anypb.Any
	if err := proto.Unmarshal(raw, &box); err != nil {
		return fmt.Errorf("parse payload: %w", err)
	}
	var layer struct {
		DecryptConfig config.DecryptConfig
		Descriptor    ocispec.Descriptor
	}
	if err := json.NewDecoder(bytes.NewReader(box.GetValue())).Decode(&layer); err != nil {
		return fmt.Errorf("parse payload: %w", err)
	}
	plain, _, err := ocicrypt.DecryptLayer(&layer.DecryptConfig, in, layer.Descriptor, false)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{plain}, make([]byte, decodeStep))
	return err
}
