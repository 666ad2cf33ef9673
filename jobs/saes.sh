#!/bin/bash
# Sparse autoencoders. As an array, task i trains part i of them, and the next job finishes the stage.
set -euo pipefail
. "${REFUSAL_ROOT:-$PWD}/jobs/common.sh"

launch "$root/run_circuit_analysis.py" "$@" "${shard[@]}"
