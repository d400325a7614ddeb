#!/bin/sh
# Generates the Go code of every .proto file beside it. With --check it generates into a temporary folder instead and
# fails when the committed code differs.
# Tools: protoc from PATH; protoc-gen-go and protoc-gen-go-ttrpc from $COFFER_CACHE/bin (default ~/.cache/coffer), then PATH.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
PATH="${COFFER_CACHE:-$HOME/.cache/coffer}/bin:$PATH"
export PATH

for tool in protoc protoc-gen-go protoc-gen-go-ttrpc; do
	if ! command -v "$tool" >/dev/null 2>&1; then
		echo "generate.sh: $tool not found; install it on PATH or under \$COFFER_CACHE/bin (versions: integration/tools/go.mod)" >&2
		exit 1
	fi
done

mode=write
case "${1:-}" in
'') ;;
--check) mode=check ;;
*)
	echo "usage: generate.sh [--check]" >&2
	exit 2
	;;
esac

out=$root
if [ "$mode" = check ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi

cd "$root"
# Files are named from the repository's root: the name is what a program's protobuf registry knows them by, and a bare
# types.proto would meet other modules' there.
files=$(find proto -name '*.proto' ! -path 'proto/include/*' | LC_ALL=C sort)
module=github.com/coffer-project/coffer
# shellcheck disable=SC2086
protoc -I . -I proto/include \
	--go_out="$out" --go_opt=module=$module \
	--go-ttrpc_out="$out" --go-ttrpc_opt=module=$module \
	$files

[ "$mode" = check ] || exit 0

status=0
find proto -name '*.pb.go' | LC_ALL=C sort >"$out/committed"
(cd "$out" && find proto -name '*.pb.go' | LC_ALL=C sort) >"$out/generated"
if ! diff -u "$out/committed" "$out/generated"; then status=1; fi
while read -r file; do
	if [ -f "$root/$file" ] && ! diff -u "$root/$file" "$out/$file"; then status=1; fi
done <"$out/generated"
if [ $status -ne 0 ]; then
	echo "generate.sh: generated code is stale; run make protos and commit the result" >&2
fi
exit $status
