#!/usr/bin/env bash
# The step of action.yml: runs gate.sh in the folder of the reports, then tells GitHub what came of it.
set -eE -o pipefail
trap 'exit 2' ERR
model=$(realpath -- "$MODEL")
mkdir -p -- "$REPORTS"
cd -- "$REPORTS"
rm -f report.* verdict.json # of an earlier job on the same runner

judge="${POLICY:+&policy=$POLICY}${VERSION:+&version=$VERSION}${FAIL_ON:+&fail_on=$FAIL_ON}"
status=0
SAUSCAN_REPORTS="sarif junit html markdown" SAUSCAN_JUDGE=${judge#&} \
  bash "$GITHUB_ACTION_PATH/gate.sh" "$model" || status=$?

verdicts=(pass fail error inconclusive)
verdict=${verdicts[status]:-error}
printf 'verdict=%s\nreports=%s\n' "$verdict" "$REPORTS" >> "$GITHUB_OUTPUT"
if [ -f report.markdown ]; then cat report.markdown >> "$GITHUB_STEP_SUMMARY"; fi
if [ "$verdict" != pass ]; then echo "::error title=sauscan::The verdict is $verdict; see the summary."; fi
exit "$status"
