package main

import (
	"context"
	"time"

	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/proto/initdata"
)

// newPolicy returns the engine that a measured document asks for; nil is no document. An error is a fault of the document.
func newPolicy(ctx context.Context, document *initdata.Document) (policy.Engine, error) {
	if document == nil {
		log.G(ctx).Warn("no measured document: this guest believes what its host says should run, which is for development")
		return policy.NewBuiltin(), nil
	}
	which, err := document.PolicyDefault()
	if err != nil {
		return nil, err
	}
	switch which {
	case "":
		begin := time.Now()
		engine, err := policy.NewMeasured(document.Data[initdata.KeyPolicy])
		if err != nil {
			return nil, err
		}
		log.G(ctx).WithField("t_policy", time.Since(begin)).Info("requests of the host pass the measured policy")
		return engine, nil
	case initdata.DefaultDevelopment:
		log.G(ctx).Warn("the measured document asks for development: this guest believes what its host says should run")
		return policy.NewBuiltin(), nil
	default:
		log.G(ctx).Info("the measured document brings no policy: containers run what their verified images say")
		return policy.NewStrict(), nil
	}
}
