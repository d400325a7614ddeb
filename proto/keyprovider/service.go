package keyprovider

import (
	"context"

	"github.com/containerd/ttrpc"
)

// ServiceName is the full name of the service on the wire, as ocicrypt and guest-components know it.
const ServiceName = "keyprovider.KeyProviderService"

// Service wraps and unwraps the keys of image layers. Both directions carry ocicrypt's JSON.
type Service interface {
	WrapKey(context.Context, *KeyProviderKeyWrapProtocolInput) (*KeyProviderKeyWrapProtocolOutput, error)
	UnWrapKey(context.Context, *KeyProviderKeyWrapProtocolInput) (*KeyProviderKeyWrapProtocolOutput, error)
}

// RegisterKeyProviderServiceService serves svc on a ttrpc server. Its name follows the generated code of the other
// services; keyprovider.proto tells why this one is not generated.
func RegisterKeyProviderServiceService(srv *ttrpc.Server, svc Service) {
	srv.RegisterService(ServiceName, &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{
			"WrapKey":   method(svc.WrapKey),
			"UnWrapKey": method(svc.UnWrapKey),
		},
	})
}

func method(
	call func(context.Context, *KeyProviderKeyWrapProtocolInput) (*KeyProviderKeyWrapProtocolOutput, error),
) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var req KeyProviderKeyWrapProtocolInput
		if err := unmarshal(&req); err != nil {
			return nil, err
		}
		return call(ctx, &req)
	}
}

type keyProviderServiceClient struct {
	client *ttrpc.Client
}

// NewKeyProviderServiceClient calls the service over an open ttrpc connection.
func NewKeyProviderServiceClient(client *ttrpc.Client) Service {
	return &keyProviderServiceClient{client: client}
}

func (c *keyProviderServiceClient) WrapKey(
	ctx context.Context, req *KeyProviderKeyWrapProtocolInput,
) (*KeyProviderKeyWrapProtocolOutput, error) {
	return c.call(ctx, "WrapKey", req)
}

func (c *keyProviderServiceClient) UnWrapKey(
	ctx context.Context, req *KeyProviderKeyWrapProtocolInput,
) (*KeyProviderKeyWrapProtocolOutput, error) {
	return c.call(ctx, "UnWrapKey", req)
}

func (c *keyProviderServiceClient) call(
	ctx context.Context, name string, req *KeyProviderKeyWrapProtocolInput,
) (*KeyProviderKeyWrapProtocolOutput, error) {
	var resp KeyProviderKeyWrapProtocolOutput
	if err := c.client.Call(ctx, ServiceName, name, req, &resp); err != nil {
		return nil, err
	}
	return &resp, nil
}
