#!/usr/bin/env bash
# Builds the small kernel of a Coffer guest from Debian's kernel sources and guest.config beside this file.
#
#   build.sh [--tree DIR] OUT          writes OUT/boot and OUT/lib/modules, which `cofferctl guest build --kernel OUT` takes
#   build.sh check FRAGMENT CONFIG     names every line of FRAGMENT that CONFIG does not have
#
# The same sources, configuration and compiler give the same bytes. OUT is replaced as a whole, and only if it was made of
# something else. --tree compiles in DIR and keeps it, so that the next build compiles only what has changed. On two cores
# a whole build takes about ten minutes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fragment=$here/guest.config
series=6.12
cache=${COFFER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/coffer}

step() { printf '  %-12s %s\n' "$1" "$2"; }
die()  { printf 'guest kernel: %s\n' "$1" >&2; exit 1; }

# check FRAGMENT CONFIG: the kernel's configuration program says nothing when it cannot do what it was asked for.
check() {
    awk '
        # "CONFIG_X=v" is what it says, "# CONFIG_X is not set" is no value at all; other lines say nothing.
        function parse() {
            if ($0 ~ /^CONFIG_[A-Za-z0-9_]+=/) { name = substr($0, 1, index($0, "=") - 1); value = substr($0, index($0, "=") + 1); return 1 }
            if ($0 ~ /^# CONFIG_[A-Za-z0-9_]+ is not set$/) { name = $2; value = ""; return 1 }
            return 0
        }
        FILENAME == ARGV[1] { if (parse()) want[name] = value; next }
        { if (parse()) have[name] = value }
        END {
            for (name in want) if (have[name] != want[name]) {
                printf "%s: wanted \"%s\", got \"%s\"\n", name, want[name], have[name]; faults++
            }
            exit faults > 0
        }' "$1" "$2"
}

if [ "${1:-}" = check ]; then
    [ $# = 3 ] || die "check takes a fragment and a configuration"
    [ -r "$2" ] && [ -r "$3" ] || die "cannot read $2 and $3"
    check "$2" "$3" && exit 0
    die "$3 is not what $2 asks for: see above"
fi

tree=
if [ "${1:-}" = --tree ]; then [ -n "${2:-}" ] || die "--tree needs a folder"; tree=$2; shift 2; fi
[ $# = 1 ] || die "give the folder to write to"
out=$1

# --- what must be there before ---------------------------------------------------------------------------------------
missing=()
for tool in gcc make flex bison bc perl xz zstd dpkg-deb apt-get; do command -v $tool >/dev/null || missing+=($tool); done
echo '#include <gelf.h>' | ${CC:-gcc} -E -x c - >/dev/null 2>&1 || missing+=(libelf-dev)
[ ${#missing[@]} = 0 ] || die "needs ${missing[*]}: apt-get install build-essential flex bison bc libelf-dev xz-utils zstd"

# --- the sources: downloaded, never installed on this machine --------------------------------------------------------
mkdir -p "$cache/kernel"
package=linux-source-$series
version=$(apt-cache policy "$package" | sed -n 's/^  Candidate: //p')
[ -n "$version" ] && [ "$version" != '(none)' ] || die "apt offers no $package: run apt-get update, or make setup"
deb=$cache/kernel/${package}_${version//:/%3a}_all.deb
if [ ! -e "$deb" ]; then
    step sources "downloading $package $version (150 MB)"
    (cd "$cache/kernel" && apt-get -qq -o APT::Sandbox::User=root download "$package=$version")
    [ -e "$deb" ] || die "apt-get downloaded something else than $deb"
fi

key=$({ sha256sum <"$deb"; cat "$fragment" "${BASH_SOURCE[0]}"; "${CC:-gcc}" --version; ld --version; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$out/key" 2>/dev/null)" = "$key" ]; then
    step kernel "$(ls "$out/lib/modules") is up to date"
    exit 0
fi

# --- unpack, configure, compile --------------------------------------------------------------------------------------
keep=$tree
[ -n "$tree" ] || tree=$(mktemp -d "$cache/kernel/build.XXXXXX")
new=$(mktemp -d "$(dirname "$out")/.kernel.XXXXXX")
clean() { rm -rf "$new"; [ -n "$keep" ] || rm -rf "$tree"; }
trap clean EXIT
if [ "$(cat "$tree/.sources" 2>/dev/null)" != "$version" ]; then
    step unpack "$tree"
    mkdir -p "$tree"
    dpkg-deb --fsys-tarfile "$deb" | tar xO "./usr/src/$package.tar.xz" | tar xJ --strip-components 1 -C "$tree"
    echo "$version" >"$tree/.sources"
fi
# Nothing of this machine gets into the kernel.
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_VERSION=1
export KBUILD_BUILD_USER=coffer KBUILD_BUILD_HOST=coffer LC_ALL=C TZ=UTC
kbuild() { make -s -C "$tree" ARCH=x86_64 CC="${CC:-gcc}" "$@"; }
kbuild KCONFIG_ALLCONFIG="$fragment" alldefconfig
check "$fragment" "$tree/.config" || die "Linux $version does not take the configuration: see above"
step compile "$(kbuild kernelrelease) on $(nproc) processors"
kbuild -j"$(nproc)" bzImage modules
release=$(kbuild kernelrelease)
kbuild INSTALL_MOD_PATH="$new" DEPMOD=true modules_install
rm -f "$new/lib/modules/$release/build" "$new/lib/modules/$release/source"
install -D -m 0644 "$tree/arch/x86/boot/bzImage" "$new/boot/vmlinuz-$release"
install -m 0644 "$tree/.config" "$new/boot/config-$release"
echo "$key" >"$new/key"
chmod 0755 "$new"
rm -rf "$out"
mv -T "$new" "$out"
step kernel "$release in $out"
