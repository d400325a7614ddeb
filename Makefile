# Coffer. `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

COFFER_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/coffer
export COFFER_CACHE

GO       ?= go
GOBUILD  := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w'
BINARIES := coffer-snapshotter containerd-shim-coffer-v2 coffer-guest coffer-unpack coffer-pull coffer-kbs cofferctl coffer-node
GUEST    := $(COFFER_CACHE)/guest

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install QEMU, the guest kernel, containerd, runc and a registry (root; Debian 12)
	@integration/tools/setup.sh

.PHONY: build
build: ## build every binary into bin/
	@for name in $(BINARIES); do $(GOBUILD) -o bin/$$name ./cmd/$$name; done

.PHONY: kernel
kernel: ## build a small kernel for guests, which starts twice as fast as Debian's (ten minutes on two cores; use it by KERNEL=own)
	@contrib/guest-kernel/build.sh $(COFFER_CACHE)/kernel/own

.PHONY: guest
guest: build ## build the guest image into the cache (needs setup; KERNEL=own takes that of make kernel, KERNEL=PATH another)
	@kernel='$(if $(filter own,$(KERNEL)),$(COFFER_CACHE)/kernel/own,$(KERNEL))'; \
	[ -n "$$kernel" ] || kernel=$$(ls $(COFFER_CACHE)/kernel/linux-image-6.*_amd64.deb 2>/dev/null | sort -V | tail -n 1); \
	[ -n "$$kernel" ] || { echo 'guest: no kernel package in $(COFFER_CACHE)/kernel: run make setup' >&2; exit 1; }; \
	bin/cofferctl guest build --kernel "$$kernel" --runc $(COFFER_CACHE)/bin/runc --agent bin/coffer-guest --out $(GUEST)

.PHONY: demo
demo: setup guest ## run an encrypted image in a VM and write out/demo/report.json (IMAGE=oci:DIR or a registry reference for your own)
	@$(GO) run ./integration/demo --out out/demo $(if $(IMAGE),--image '$(IMAGE)')

.PHONY: demo-deny
demo-deny: setup guest ## show what a host that goes astray is refused, with the words that users read, and write out/demo/deny.json
	@$(GO) run ./integration/demo --deny --out out/demo

.PHONY: conformance
conformance: ## run critest with runc and with Coffer and compare (CRITEST=path of a critest binary; REPEAT=n for Coffer)
	@[ -x '$(CRITEST)' ] || { $(GO) run ./integration/conformance --critest '$(CRITEST)'; exit 1; }
	@$(MAKE) --no-print-directory setup guest
	@$(GO) run ./integration/conformance --critest '$(CRITEST)' --repeat $(or $(REPEAT),1)

.PHONY: client-suite
client-suite: setup guest ## run containerd's own client tests with Coffer (RUN=regular expression)
	@$(GO) run ./integration/clientsuite $(if $(RUN),--run '$(RUN)')

.PHONY: bench-pull
bench-pull: build ## measure coffer-pull against this machine's limits and other tools, and write out/bench/pull.json and .svg (ARGS='--scaling' measures by layers, files and cores too)
	@$(GO) run ./integration/bench/pull --out out/bench $(ARGS)

.PHONY: bench-setup
bench-setup: setup ## install the tools that bench-pull compares with (root; Debian 12)
	@apt-get -qq install -y --no-install-recommends skopeo umoci buildah

.PHONY: bench-boot
bench-boot: setup guest ## measure the start of PODS=10 pods and write out/bench/boot.json and boot.svg (ARGS='--variant NAME=DROP-IN.toml' compares)
	@$(GO) run ./integration/bench/boot --out out/bench --pods $(or $(PODS),10) $(ARGS)

.PHONY: bench-kbs
bench-kbs: ## measure handshakes and key reads of coffer-kbs and write out/bench/kbs.json and kbs.svg
	@$(GO) run ./integration/bench/kbs --out out/bench $(ARGS)

# Packages whose tests boot VMs: as many at a time as there are processors, because more would time each other out. Nothing else
# runs beside them, and the first, which boots that many by itself, not beside the others.
NODE_TESTS := ./integration
VM_TESTS   := ./integration/guestagent ./integration/guestboot ./shim/vm/qemu

.PHONY: test
test: setup guest ## run all tests: unit, root and uvm (QEMU); nothing is skipped for want of a tool (make check vets)
	@cd proto/volume/oracle && $(GO) test ./...
	@cd proto/sigstore/oracle && $(GO) test -tags containers_image_openpgp ./...
	@$(MAKE) --no-print-directory test-gpu-evidence
	@COFFER_REQUIRE=1 $(GO) test -vet=off -timeout 15m $$($(GO) list ./... | grep -vxF -f <($(GO) list $(VM_TESTS) $(NODE_TESTS)))
	@COFFER_REQUIRE=1 $(GO) test -vet=off -timeout 15m $(VM_TESTS)
	@COFFER_REQUIRE=1 $(GO) test -vet=off -timeout 30m $(NODE_TESTS)

.PHONY: unit-test
unit-test: ## run the tests that need neither root nor QEMU
	@COFFER_TEST_TIER=unit $(GO) test ./...

# NVIDIA's header marks functions that go-nvml wraps as deprecated; none of them is used here.
NVML := CGO_ENABLED=1 CGO_CFLAGS='-O2 -g -Wno-deprecated-declarations' $(GO)

.PHONY: gpu-evidence
gpu-evidence: ## build the program that asks the NVIDIA driver, for the image of the driver (needs gcc)
	@$(NVML) build -tags nvml -trimpath -buildvcs=false -ldflags '-s -w' -o bin/coffer-gpu-evidence ./cmd/coffer-gpu-evidence

.PHONY: test-gpu-evidence
test-gpu-evidence: ## test that program with NVIDIA's mock of its library, up to the key broker (needs gcc)
	@$(NVML) test -tags nvml ./cmd/coffer-gpu-evidence ./guestpull/attest/nvgpu/... ./integration/evidence

.PHONY: test-pkcs11
test-pkcs11: ## test the key broker's master key in an HSM with SoftHSM (needs gcc and softhsm2; SOFTHSM2_LIBRARY=path of its library)
	@CGO_ENABLED=1 $(GO) test -tags pkcs11 ./owner/broker/hsm ./owner/broker/config

.PHONY: test-vfio
test-vfio: setup guest ## pass a disk through to a pod's VM, over vsock, on a node that QEMU emulates with an IOMMU (VMs in a VM: not in make test, because it takes minutes)
	@$(GO) run ./integration/nested --out out/vfio $(ARGS)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME=30s each, as root (TARGET=regular expression of some; ARGS='--help' for more)
	@$(GO) run ./integration/fuzz --time $(or $(FUZZTIME),30s) $(if $(TARGET),--target '$(TARGET)') $(ARGS)

.PHONY: check
check: ## gofmt, vet, lint if installed, generated code, versions and the dependency rule
	@integration/tools/check.sh

.PHONY: protos
protos: ## generate Go from proto/
	@proto/generate.sh

.PHONY: clean
clean: ## remove bin/ and out/ (the cache stays)
	@rm -rf bin out
