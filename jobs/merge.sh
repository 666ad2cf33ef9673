#!/bin/bash
# After an array of inference: index, labels and rates from its shards. No model runs.
set -euo pipefail
. "${REFUSAL_ROOT:-$PWD}/jobs/common.sh"

limited "$python" "$root/src/run_inference.py" "$@"
