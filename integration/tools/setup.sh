#!/usr/bin/env bash
# Installs what Coffer is built and tested with, from Debian's archive and the Go module proxy that this machine is
# already configured for. Asks nothing, prints one line a step, and changes nothing when run again.
set -euo pipefail

cache=${COFFER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/coffer}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suite=bookworm-backports
export DEBIAN_FRONTEND=noninteractive

step() { printf '  %-12s %s\n' "$1" "$2"; }
die()  { printf 'setup: %s\n' "$1" >&2; exit 1; }

# --- what must be there before -----------------------------------------------------------------------------------
[ "$(id -u)" = 0 ]                    || die "needs root to install packages: run it as root or with sudo -E"
command -v apt-get >/dev/null         || die "needs Debian 12 (apt-get is missing); other systems: install the packages named in $0 by hand"
command -v go >/dev/null              || die "Go is missing: install Go $(awk '/^go /{print $2}' "$here/../../go.mod") or newer and put it on PATH"
command -v "${CC:-cc}" >/dev/null     || die "a C compiler is missing (runc needs one): apt-get install gcc libc6-dev"

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[ "$codename" = bookworm ]            || die "this is ${codename:-an unknown system}, not Debian 12 (bookworm): QEMU >= 10 and kernel >= 6.12 must be installed by hand"

mkdir -p "$cache"
exec 9>"$cache/setup.lock"
flock 9

# --- Debian packages ---------------------------------------------------------------------------------------------
refreshed=
refresh() {
    [ -z "$refreshed" ] || return 0
    apt-get -qq update >"$cache/apt.log" 2>&1 || die "apt-get update went wrong: see $cache/apt.log"
    refreshed=1
}

# The backports suite lies beside the suite that the machine uses already, on the same mirror and under the same key.
ensure_backports() {
    local sources uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    sources=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages')
    if grep -q "^$suite " <<<"$sources"; then return; fi
    uri=$(awk -v suite="$codename" '$1 == suite { print $2; exit }' <<<"$sources")
    [ -n "$uri" ] || die "apt knows no source for $codename: add Debian's main archive to /etc/apt/sources.list.d"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$suite"
        [ ! -e "$keyring" ] || printf 'Signed-By: %s\n' "$keyring"
    } >/etc/apt/sources.list.d/coffer-backports.sources
    refreshed=
    step backports "added $suite beside $codename"
}

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed$'; }

ensure_packages() { # ensure_packages SUITE PACKAGE...
    local release=$1 missing=() name; shift
    for name; do installed "$name" || missing+=("$name"); done
    if [ ${#missing[@]} -gt 0 ]; then
        refresh
        apt-get -qq install -y --no-install-recommends -t "$release" "${missing[@]}" >"$cache/apt.log" 2>&1 ||
            die "cannot install ${missing[*]}: see $cache/apt.log"
    fi
    step packages "$*"
}

qemu_major() { qemu-system-x86_64 --version 2>/dev/null | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p'; }

ensure_backports
ensure_packages "$codename" containernetworking-plugins libseccomp-dev erofs-utils iproute2 iptables protobuf-compiler busybox-static xz-utils
if [ "$(qemu_major)" = "" ] || [ "$(qemu_major)" -lt 10 ]; then
    refresh
    apt-get -qq install -y --no-install-recommends -t "$suite" qemu-system-x86 >"$cache/apt.log" 2>&1 ||
        die "cannot install QEMU 10 from $suite: see $cache/apt.log"
fi
step qemu "$(qemu-system-x86_64 --version | head -n 1)"

# --- guest kernel: downloaded, never installed on the host ----------------------------------------------------------
ensure_kernel() {
    mkdir -p "$cache/kernel"
    if compgen -G "$cache/kernel/linux-image-6.*-cloud-amd64_*_amd64.deb" >/dev/null; then return; fi
    refresh
    local name
    name=$(apt-cache depends "linux-image-cloud-amd64/$suite" 2>/dev/null |
        sed -n 's/^  Depends: \(linux-image-6\.[0-9.]*+[a-z0-9]*-cloud-amd64\)$/\1/p' | head -n 1)
    [ -n "$name" ] || die "$suite offers no linux-image-cloud-amd64: run apt-get update and try again"
    (cd "$cache/kernel" && apt-get -qq -o APT::Sandbox::User=root download "$name/$suite" >"$cache/apt.log" 2>&1) ||
        die "cannot download $name: see $cache/apt.log"
}
ensure_kernel
step kernel "$(basename "$(ls "$cache"/kernel/linux-image-6.*_amd64.deb | sort -V | tail -n 1)")"

# --- programs built from their Go modules -----------------------------------------------------------------------
# The key holds everything that decides what comes out, so a changed pin rebuilds and an unchanged one costs nothing.
tools_key() { { cat "$here/go.mod" "$here/go.sum" "${BASH_SOURCE[0]}"; go env GOVERSION; } | sha256sum | cut -d' ' -f1; }

build_tools() {
    local key; key=$(tools_key)
    if [ "$(cat "$cache/bin/.key" 2>/dev/null)" = "$key" ]; then
        step tools "containerd, ctr, runc, registry, protoc plugins (cached)"
        return
    fi
    local out="$cache/bin.new"
    rm -rf "$out" && mkdir -p "$out"
    (
        cd "$here"
        export GOBIN=$out GOFLAGS="-trimpath -buildvcs=false -mod=readonly"
        step tools "building containerd $(go list -m -f '{{.Version}}' github.com/containerd/containerd/v2) (two minutes on two cores)"
        CGO_ENABLED=0 go install -ldflags '-s -w' -tags no_btrfs,no_zfs,no_devmapper \
            github.com/containerd/containerd/v2/cmd/containerd \
            github.com/containerd/containerd/v2/cmd/ctr \
            github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
        step tools "building registry $(go list -m -f '{{.Version}}' github.com/distribution/distribution/v3)"
        CGO_ENABLED=0 go install -ldflags '-s -w' github.com/distribution/distribution/v3/cmd/registry
        step tools "building runc $(go list -m -f '{{.Version}}' github.com/opencontainers/runc), static, with seccomp"
        CGO_ENABLED=1 go build -tags 'netgo osusergo seccomp' -ldflags '-s -w -extldflags "-static"' \
            -o "$out/runc" github.com/opencontainers/runc
        CGO_ENABLED=0 go install -ldflags '-s -w' \
            google.golang.org/protobuf/cmd/protoc-gen-go \
            github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc
    )
    echo "$key" >"$out/.key"
    rm -rf "$cache/bin" && mv "$out" "$cache/bin"
    step tools "in $cache/bin"
}
build_tools
