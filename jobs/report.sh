#!/bin/bash
# Refusal metrics of the responses, then figures and reports.
set -euo pipefail
. "${REFUSAL_ROOT:-$PWD}/jobs/common.sh"

"$python" "$root/run_analysis.py" --results-dir "${REFUSAL_RESULTS:-results}"
limited "$python" "$root/run_circuit_analysis.py" "$@"
