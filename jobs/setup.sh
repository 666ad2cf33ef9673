#!/bin/bash
# The environment of a study in scratch: on a login node, bash jobs/setup.sh [--requirements FILE] [--conda] [FOLDER]
#
# Makes FOLDER/env (a venv, with --conda a conda environment from llm_refusal_env.yml), keeps pip's and the hub's files
# in FOLDER too, as homes are small, and writes FOLDER/activate.sh. FOLDER is $SCRATCH/refusal-circuits by default.
# A second call installs only what is missing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

folder='' requirements=$root/requirements.txt kind=venv
while [ $# -gt 0 ]; do
    case $1 in
        --requirements) requirements=$(realpath "${2:?--requirements needs a file}") && shift 2 ;;
        --conda) kind=conda && shift ;;
        -h | --help) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" && exit 0 ;;
        -*) echo "error: $1: allowed are --requirements FILE, --conda and a folder" >&2 && exit 2 ;;
        *) folder=$1 && shift ;;
    esac
done
[ -n "$folder" ] || folder=${SCRATCH:+$SCRATCH/refusal-circuits}
[ -n "$folder" ] || { echo "error: SCRATCH is not set; name a folder: bash jobs/setup.sh FOLDER" >&2 && exit 2; }
mkdir -p "$folder/huggingface" "$folder/tmp"
folder=$(cd "$folder" && pwd)
export PIP_CACHE_DIR=$folder/pip TMPDIR=$folder/tmp PIP_DISABLE_PIP_VERSION_CHECK=1

# newest_python: a Python that the project runs on; several may be there, and python3 is often the oldest.
newest_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer found; load a module (module avail python), or use --conda" >&2
    exit 2
}

if [ "$kind" = conda ]; then
    # its pip section names files of the project's folder
    [ -x "$folder/env/bin/python" ] || (cd "$root" && conda env create --yes --prefix "$folder/env" --file llm_refusal_env.yml)
else
    if [ ! -x "$folder/env/bin/python" ]; then
        python=$(newest_python)
        "$python" -m venv "$folder/env"
    fi
    (cd "$root" && "$folder/env/bin/python" -m pip install --quiet --requirement "$requirements")
fi

{
    echo "# Before jobs/submit.py and after each login: . $(printf %q "$folder/activate.sh")"
    echo "export HF_HOME=$(printf %q "$folder/huggingface")"
    echo "export PATH=$(printf %q "$folder/env/bin"):\$PATH"
} >"$folder/activate.sh"
echo "The environment is in $folder. Now:  . $(printf %q "$folder/activate.sh")  and  python -m refusal.doctor"
