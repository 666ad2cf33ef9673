#!/bin/bash
# Models and data of a configuration, on a node with network:
#     bash jobs/download.sh --config FILE [--data bench-llm/or-bench]
# Models go to HF_HOME; with --data the three OR-Bench files go to the configuration's dataset_dir.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${REFUSAL_PYTHON:-$(command -v python || echo "$root/.venv/bin/python")}
exec "$python" -m refusal.jobs.download "$@"
