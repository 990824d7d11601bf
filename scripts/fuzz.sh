#!/usr/bin/env bash
# Runs every fuzz target of the module for a while: fuzz.sh DURATION (as "3s").
# Targets are found, not listed, so that none is forgotten. An input that fails
# is kept by the go command in the package's testdata/fuzz and fails the tests
# from then on.
set -euo pipefail
cd "$(dirname "$0")/.."
duration=${1:?usage: fuzz.sh DURATION}
go=${GO:-go}

# Only packages whose tests name a fuzz target are worth building for the list.
mapfile -t directories < <(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u)
[ "${#directories[@]}" -gt 0 ] || { echo "fuzz: no fuzz targets found" >&2; exit 1; }

# The go command prints a package's targets, then "ok package time".
list=$("$go" test -list '^Fuzz' "${directories[@]}")
targets=$(awk '/^Fuzz/ { names[n++] = $1 } /^ok/ { for (i = 0; i < n; i++) print $2, names[i]; n = 0 }' <<<"$list")
[ -n "$targets" ] || { echo "fuzz: no fuzz targets found" >&2; exit 1; }

while read -r package target; do
	echo "fuzz: $package $target"
	if ! output=$("$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" "$package" </dev/null 2>&1); then
		echo "$output" >&2
		exit 1
	fi
	grep -o 'execs: [0-9]*' <<<"$output" | tail -1 | sed 's/^/fuzz:   /' || true
done <<<"$targets"
