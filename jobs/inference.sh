#!/bin/bash
# The prompts of all models: activations, responses, what the model did. As an array, task i does part i of them.
set -euo pipefail
. "${REFUSAL_ROOT:-$PWD}/jobs/common.sh"

launch "$root/src/run_inference.py" "$@" "${shard[@]}"
