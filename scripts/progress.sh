#!/usr/bin/env bash
# Runs a step of "make test" and says in plain lines when it began, how it ended
# and how long it took: progress.sh NAME COMMAND [ARGUMENT...]
set -uo pipefail
name=$1
shift
echo "== $name: started"
begin=$SECONDS
"$@"
status=$?
if [ "$status" -eq 0 ]; then
	echo "== $name: ok after $((SECONDS - begin)) s"
else
	echo "== $name: FAILED after $((SECONDS - begin)) s (exit code $status)" >&2
fi
exit "$status"
