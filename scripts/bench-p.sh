#!/usr/bin/env bash
# Measures what players cost a node of weir, with weir bench, and prints the
# outcome as a page of Markdown: bench.sh [RUN...]
#
# Discovery, an origin and an edge run as processes of their own, on ports from
# BENCH_PORT (default 27000) on; the edge is started anew for each run, so that
# its memory is that of the run's players alone. Without arguments all runs are
# made, which takes some eight minutes. BENCH_SCALE (default 100) is the percentage
# of the players, for smaller machines; BENCH_JSON is a folder to keep the raw
# results in.
set -euo pipefail
cd "$(dirname "$0")/.."
weir=${WEIR:-bin/weir}
[ -x "$weir" ] || { echo "bench: $weir is missing: make build" >&2; exit 1; }
base=${BENCH_PORT:-27000}
scale=${BENCH_SCALE:-100}
work=$(mktemp -d)
json=${BENCH_JSON:-$work/json}
mkdir -p "$json"
ulimit -n "$(ulimit -Hn)"

discovery=127.0.0.1:$((base + 1))
origin_rtmp=127.0.0.1:$((base + 2)) origin_http=127.0.0.1:$((base + 3)) origin_admin=$((base + 4))
edge_rtmp=127.0.0.1:$((base + 5)) edge_http=127.0.0.1:$((base + 6)) edge_admin=$((base + 7))
edge_https=127.0.0.1:$((base + 8)) tls=
running=()

cleanup() {
	status=$?
	for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${running[@]}"; do wait "$pid" 2>/dev/null || true; done
	if [ "$status" -ne 0 ]; then tail -n 20 "$work"/*.log >&2 || true; fi
	rm -rf "$work"
}
trap cleanup EXIT

# ready PORT waits until the node with this admin port takes sessions.
ready() {
	for _ in $(seq 200); do
		if exec 3<>"/dev/tcp/127.0.0.1/$1"; then
			printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
			if read -r line <&3 && [[ $line == *" 200 "* ]]; then
				exec 3>&-
				return 0
			fi
			exec 3>&-
		fi 2>/dev/null
		sleep 0.1
	done
	echo "bench: a node is not ready after 20 s" >&2
	return 1
}

# node ROLE runs a node with the configuration from standard input.
node() {
	cat >"$work/$1.yaml"
	"$weir" --log-level warn "$1" -c "$work/$1.yaml" >>"$work/$1.log" 2>&1 &
	running+=($!)
}

node discovery <<-END
	role: discovery
	listen: "$discovery"
END
node origin <<-END
	role: origin
	node: {id: bench-origin}
	rtmp: {listen: "$origin_rtmp"}
	http: {listen: "$origin_http"}
	admin: {listen: "127.0.0.1:$origin_admin"}
	advertise: {rtmp: "$origin_rtmp", http: "$origin_http"}
	load: {soft_limit: 0, hard_limit: 0}
	discovery: {urls: ["http://$discovery"]}
	# Nobody plays HLS here, and a thousand streams of it take a core from what is measured.
	vhosts: {__defaultVhost__: {hls: {enabled: false}}}
END
ready "$origin_admin"

# edge PLAY starts the edge with this play section.
edge() {
	node edge <<-END
		role: edge
		node: {id: bench-edge}
		rtmp: {listen: "$edge_rtmp"}
		http: {listen: "$edge_http"$tls}
		admin: {listen: "127.0.0.1:$edge_admin"}
		advertise: {rtmp: "$edge_rtmp", http: "$edge_http"}
		discovery: {urls: ["http://$discovery"]}
		play: {$1}
		load: {soft_limit: 0, hard_limit: 0}
		vhosts: {__defaultVhost__: {upstreams: ["rtmp://$origin_rtmp"]}}
	END
	ready "$edge_admin"
}

# certificate makes one, and has the edge listen for TLS with it from now on.
certificate() {
	(cd "$work" && go run "$(go env GOROOT)/src/crypto/tls/generate_cert.go" --host 127.0.0.1 --ecdsa-curve P256 --duration 24h) 2>"$work/certificate.log"
	tls=", tls: {listen: \"$edge_https\", cert_file: \"$work/cert.pem\", key_file: \"$work/key.pem\"}"
}

only=("$@")
wanted() { [ "${#only[@]}" -eq 0 ] || [[ " ${only[*]} " == *" $1 "* ]]; }

# run NAME PLAY URL [OPTION...] measures once, with a fresh edge.
run() {
	name=$1 play=$2 url=$3
	shift 3
	wanted "$name" || return 0
	echo "== $name" >&2
	edge "$play"
	pid=${running[-1]}
	"$weir" bench --publish "rtmp://$origin_rtmp/live" --url "$url" --admin "http://127.0.0.1:$edge_admin" \
		--json "$json/$name.json" "$@" >&2
	kill "$pid"
	wait "$pid" || true
	unset 'running[-1]'
}

n() { echo $(($1 * scale / 100)); }
flv=http://$edge_http/live ws=ws://$edge_http/live rtmp=rtmp://$edge_rtmp/live

run flv-50 "" "$flv" -n 50
run flv-2000 "io_uring: false" "$flv" -n "$(n 2000)" --floor
run flv-2000-350ms "max_latency: 350ms, io_uring: false" "$flv" -n "$(n 2000)" --floor --floor-interval 350ms
run ws-2000 "" "$ws" -n "$(n 2000)"
run rtmp-2000 "" "$rtmp" -n "$(n 2000)"
if wanted https-1000; then
	certificate
	run https-1000 "" "https://$edge_https/live" -n "$(n 1000)" --insecure --ramp 200
	tls=
fi
run flv-10000 "io_uring: false" "$flv" -n "$(n 10000)" --floor --floor-interval 120ms
# These wait for the logs of the streams to fill that are pulled for the last players only.
run streams-1x5000 "" "$flv" -n "$(n 5000)" --settle 10s
run streams-1000x5 "" "$flv" -n "$(n 5000)" -m "$(n 1000)" --settle 10s
run slow-2 "" "$flv" -n "$(n 1000)" --slow 1 --stalled 1 --duration 40s
run slow-500 "" "$flv" -n "$(n 1000)" --stalled "$(n 500)" --duration 15s
run crowd-5000 "" "$flv" -n "$(n 1000)" --crowd "$(n 5000)" --crowd-time 5s

go run ./scripts/benchtable "$json"
