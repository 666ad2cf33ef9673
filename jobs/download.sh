#!/bin/bash
# Models and data of a configuration, on a node with network:
#     bash jobs/download.sh --config FILE [--data bench-llm/or-bench]
# Models go to HF_HOME; with --data the three OR-Bench files go to the configuration's dataset_dir.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The active environment's Python, else the project's own; one without the project is neither.
candidates=(python "$root/.venv/bin/python")
[ -z "${REFUSAL_PYTHON:-}" ] || candidates=("$REFUSAL_PYTHON")
for python in "${candidates[@]}"; do
    if "$python" -c 'import refusal, safetensors, transformers' 2>/dev/null; then
        exec "$python" -m refusal.jobs.download "$@"
    fi
done
echo "error: found no project in ${candidates[*]}: activate its environment (bash jobs/setup.sh makes one), then again" >&2
exit 2
