#!/usr/bin/env bash
# Sees to it that the programs exist that the tests run. What is missing is
# installed with apt-get, as root or by sudo without a password; where that is
# not possible the script fails and says what to install.
set -euo pipefail

# program=Debian package. gcc and the C library's headers are for the race
# detector, which needs cgo.
need=(ffmpeg=ffmpeg ffprobe=ffmpeg rtmpdump=rtmpdump curl=curl git=git gcc=gcc etcd=etcd-server ip=iproute2 chromium=chromium node=nodejs npm=npm dig=bind9-dnsutils)

packages=()
missing() {
	packages=()
	local pair
	for pair in "${need[@]}"; do
		command -v "${pair%%=*}" >/dev/null 2>&1 || packages+=("${pair#*=}")
	done
	if command -v gcc >/dev/null 2>&1 && ! echo '#include <stdlib.h>' | gcc -E -xc - >/dev/null 2>&1; then
		packages+=(libc6-dev)
	fi
	[[ " ${packages[*]-} " == *" gcc "* ]] && packages+=(libc6-dev)
	[ "${#packages[@]}" -gt 0 ] || return 1
	mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
}

missing || exit 0

say_what_to_do() {
	echo "tools: missing: ${packages[*]}" >&2
	echo "tools: install them with your package manager, on Debian and Ubuntu with" >&2
	echo "tools:   sudo apt-get install --no-install-recommends ${packages[*]}" >&2
	exit 1
}

command -v apt-get >/dev/null 2>&1 || say_what_to_do
if [ "$(id -u)" -eq 0 ]; then
	as_root=(env)
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
	as_root=(sudo -n env)
else
	say_what_to_do
fi

# The packages are for programs, not for services: where nobody has said otherwise,
# say that none is started (Debian starts etcd when it is installed).
policy=/usr/sbin/policy-rc.d
if [[ " ${packages[*]} " == *" etcd-server "* && ! -e $policy ]]; then
	printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 0755 /dev/stdin "$policy"
	trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "tools: installing ${packages[*]}"
apt() {
	"${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null
}
# A list of packages that is old, or none, is the usual reason for a failure:
# try with what is there, then with a fresh one.
if ! apt install -y --no-install-recommends "${packages[@]}" >/dev/null 2>&1; then
	apt update && apt install -y --no-install-recommends "${packages[@]}" >/dev/null || say_what_to_do
fi
if missing; then
	say_what_to_do
fi
