#!/usr/bin/env bash
# gate.sh MODEL: exits 0 pass, 1 fail, 2 error, 3 inconclusive. See README.md for the variables it reads.
set -eE -o pipefail
trap 'exit 2' ERR
api() { curl -sSf --retry 5 -K <(printf 'header = "Authorization: Bearer %s"\n' "$SAUSCAN_API_KEY") "$@"; }
get() { python3 -c 'import json, sys; print(json.load(sys.stdin)["'"$1"'"].encode("unicode_escape").decode())'; }
[[ ! ${SAUSCAN_JUDGE:-} =~ policy=([a-z0-9-]+) ]] || api -o /dev/null "$SAUSCAN_URL/policies/${BASH_REMATCH[1]}?$SAUSCAN_JUDGE"
scan=$(api -T "$1" -X POST -H "X-Filename: ${1##*/}" -H "Content-Type: application/octet-stream" -o /dev/null \
  -w '%header{location}' "$SAUSCAN_URL/scans?budget=${SAUSCAN_BUDGET:-standard}${SAUSCAN_REFERENCE:+&reference=$SAUSCAN_REFERENCE}")
until [[ ${state:-} =~ ^(succeeded|failed|cancelled|expired)$ ]]; do
  sleep 1 && state=$(api -H "Prefer: wait=30" "$SAUSCAN_URL$scan" | get state)
done
[[ $state == succeeded ]] || { echo "$SAUSCAN_URL$scan $state" >&2 && exit 2; }
for kind in ${SAUSCAN_REPORTS:-}; do api "$SAUSCAN_URL$scan/report.$kind" -o "report.$kind"; done
verdict=$(api "$SAUSCAN_URL$scan/verdict${SAUSCAN_JUDGE:+?$SAUSCAN_JUDGE}" | tee verdict.json | get verdict)
echo "$verdict: $(get decided_by < verdict.json): $(get reason < verdict.json)"
case $verdict in pass) exit 0 ;; fail) exit 1 ;; *) exit 3 ;; esac
