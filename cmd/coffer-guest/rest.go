package main

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/guestpull/rest"
	"github.com/coffer-project/coffer/proto/initdata"
)

// serveREST opens the endpoint for the pod's own programs, if the document wants one. No container runs yet that could take its port.
func serveREST(ctx context.Context, s settings, document *initdata.Document, keys decrypt.KeySource) error {
	config, err := document.Coffer()
	if err != nil || len(config.REST.Serve) == 0 {
		return err
	}
	broker, ok := keys.(rest.Broker)
	if !ok {
		return fmt.Errorf("rest.serve in %s needs a key broker (kbc in cdh.toml), and the document names none: %w", initdata.KeyCoffer, errdefs.ErrInvalidArgument)
	}
	l, err := rest.Listen(ctx, policy.RESTPort)
	if err != nil {
		return err
	}
	log.G(ctx).WithField("serve", config.REST.Serve).WithField("address", l.Addr().String()).Info("the pod's programs can ask for what the measured document lists")
	go func() {
		if err := rest.New(broker, s.policy, config.REST.Serve).Serve(ctx, l); err != nil {
			log.G(ctx).WithError(err).Error("the pod's programs are not answered any more")
		}
	}()
	return nil
}
