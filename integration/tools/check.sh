#!/usr/bin/env bash
# What a reviewer should not have to look for: format, vet, lint, generated code, resolved versions, and the rule of
# who may import whom. The import graph is the trust boundary, so a fault here is a security fault.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

faults=0
fault() { printf 'check: %s\n' "$1" >&2; faults=$((faults + 1)); }
mod=github.com/coffer-project/coffer

unformatted=$(gofmt -l $(git ls-files '*.go'))
[ -z "$unformatted" ] || fault "not gofmt'ed: $unformatted"

go mod verify >/dev/null & # it reads all modules, and so waits for the disk
verify=$!
go vet ./... || fault "go vet found something"
wait "$verify" || fault "go mod verify found changed modules"
go mod tidy -diff >/dev/null || fault "go.mod is not tidy: run go mod tidy"

if command -v golangci-lint >/dev/null; then
    golangci-lint run ./... || fault "golangci-lint found something"
else
    echo 'check: golangci-lint is not installed; lint skipped'
fi

proto/generate.sh --check || fault "generated code is not up to date: run make protos"

# --- resolved versions: a low pin elsewhere can silently lower these ----------------------------------------------
version() { (cd "$1" && go list -m -f '{{.Version}}' "$2"); }
for dir in . integration/tools; do
    got=$(version "$dir" github.com/containerd/containerd/v2)
    [ "$got" = v2.4.2 ] || fault "$dir resolves containerd to $got, not v2.4.2"
done

# sigstore-go from 1.4.0 on demands a newer Go than ours. Modules of their own follow this one's versions.
got=$(version proto/sigstore/oracle github.com/sigstore/sigstore-go)
[ "$got" = v1.3.0 ] || fault "proto/sigstore/oracle resolves sigstore-go to $got, not v1.3.0"
for dir in proto/sigstore/oracle proto/volume/oracle; do
    (cd "$dir" && go mod tidy -diff >/dev/null) || fault "$dir/go.mod is not tidy: run go mod tidy there"
done

# --- who may import whom ------------------------------------------------------------------------------------------
deps() { go list -deps "$@" 2>/dev/null; }
parties=(snapshotter shim guestpull owner)
for party in "${parties[@]}"; do
    imported=$(deps "./$party/...")
    for other in "${parties[@]}" integration node; do
        [ "$party" = "$other" ] && continue
        bad=$(grep -E "^$mod/$other(/|$)" <<<"$imported")
        [ -z "$bad" ] || fault "$party imports $(head -n 1 <<<"$bad")"
    done
done
# The admin's view stands above the two halves of the host's side, and nothing but its command above it.
bad=$(deps ./node/... | grep -E "^$mod/(guestpull|owner|integration)(/|$)")
[ -z "$bad" ] || fault "node imports $(head -n 1 <<<"$bad")"
bad=$(deps ./proto/... | grep -E "^$mod/" | grep -vE "^$mod/proto(/|$)")
[ -z "$bad" ] || fault "proto imports $(head -n 1 <<<"$bad")"

forbid() { # forbid BINARY WHY PATTERN
    local bad
    bad=$(deps "./cmd/$1" | grep -E "$3")
    [ -z "$bad" ] || fault "$1 $2: it links $(head -n 1 <<<"$bad")"
}
for host in coffer-snapshotter containerd-shim-coffer-v2 coffer-node; do
    forbid "$host" "must not be able to decrypt" "^$mod/(guestpull|owner)(/|\$)|^github.com/containers/ocicrypt|^$mod/proto/keyprovider\$"
done
for host in coffer-snapshotter containerd-shim-coffer-v2 coffer-node coffer-pull; do
    forbid "$host" "decides by no policy" "open-policy-agent"
done
forbid coffer-snapshotter "must not reach a registry" 'containerd/v2/core/remotes/docker'
forbid coffer-guest "must hold no VM driver and no verifier" "^$mod/(shim|snapshotter|owner)(/|\$)|go-(sev|tdx)-guest/"
forbid coffer-guest "must not be able to pretend to be a TEE" "^$mod/guestpull/attest/attesttest\$|go-configfs-tsm/configfs/faketsm"
forbid coffer-guest "must stay a static program" "^github.com/NVIDIA/go-nvml"
forbid coffer-kbs "must not be able to forge evidence" "^$mod/owner/appraise/(snp/snptest|nvgpu/nvgputest)\$|go-(sev|tdx)-guest/testing"
forbid coffer-kbs "must hold no host code" "^$mod/(shim|snapshotter|guestpull|node)(/|\$)"
forbid cofferctl "must hold no host code: coffer-node does" "^$mod/(shim|snapshotter|guestpull|node)(/|\$)"

# vm knows no hypervisor; only plugin names one.
bad=$(go list -f '{{.ImportPath}}: {{join .Imports " "}}' ./shim/... 2>/dev/null |
    grep -E "$mod/shim/vm/qemu( |\$)" | grep -vE "^$mod/shim/(plugin|vm/qemu)[:/]")
[ -z "$bad" ] || fault "only shim/plugin may name QEMU: $bad"

# --- size of files ------------------------------------------------------------------------------------------------
long=$(git ls-files '*.go' | grep -v '\.pb\.go$\|_ttrpc\.pb\.go$' | xargs wc -l | awk '$1 > 500 && $2 != "total" {print $2 " (" $1 ")"}')
[ -z "$long" ] || fault "files of more than 500 lines: $long"

[ "$faults" = 0 ] || { echo "check: $faults faults" >&2; exit 1; }
echo 'check: ok'
