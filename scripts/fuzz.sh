#!/usr/bin/env bash
# Runs every fuzz target of the module for a while, each in one process, as many at
# once as there are processors: fuzz.sh DURATION (as "5s"). Targets are found, not
# listed, so that none is forgotten. An input that fails is kept by the test in the
# package's testdata/fuzz and fails the tests from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
duration=${1:?usage: fuzz.sh DURATION}
go=${GO:-go}
cache=$("$go" env GOCACHE)/fuzz/$("$go" list -m)
binaries=$(mktemp -d)
trap 'rm -rf "$binaries"' EXIT

# Fuzzes the targets of one package. It is built once for all of them.
fuzz() {
	local directory=$1 binary=$binaries/${1//\//_} target output try
	"$go" test -c -fuzz . -o "$binary" "$directory"
	cd "$directory"
	for target in $("$binary" -test.list '^Fuzz'); do
		for try in 1 2 3; do
			if output=$("$binary" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$duration" -test.parallel 1 \
				-test.fuzzcachedir "$cache/${directory#./}" </dev/null 2>&1); then
				break
			fi
			# On a busy machine Go's fuzzing sometimes takes the end of its own time for a
			# failure. One that an input has made always says where that was written to.
			if [ "$try" -eq 3 ] || grep -q 'Failing input written' <<<"$output" || ! grep -q '^ *context deadline exceeded$' <<<"$output"; then
				printf 'fuzz: %s %s\n%s\n' "$directory" "$target" "$output" >&2
				return 1
			fi
		done
		echo "fuzz: $directory $target, $(grep -o 'execs: [0-9]*' <<<"$output" | tail -1 || true)"
	done
}
export -f fuzz
export duration go cache binaries

# Those with the most targets first: at the end nobody is to wait for them alone.
directories=$(grep -rc --include='*_test.go' '^func Fuzz' . | awk -F: '$2 > 0 { sub("/[^/]*$", "", $1); n[$1] += $2 } END { for (d in n) print n[d], d }' | sort -rn | cut -d' ' -f2)
[ -n "$directories" ] || { echo "fuzz: no fuzz targets found" >&2; exit 1; }
xargs -P "$(nproc)" -n1 bash -euo pipefail -c 'fuzz "$1"' fuzz <<<"$directories"
