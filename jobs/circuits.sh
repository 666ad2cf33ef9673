#!/bin/bash
# What an array of SAE training leaves to finish, circuits, comparison: whatever --stages names.
set -euo pipefail
. "${REFUSAL_ROOT:-$PWD}/jobs/common.sh"

limited "$python" "$root/run_circuit_analysis.py" "$@"
