# Read by the bodies beside it: where things are, which part of the work this task does, how Python is started.
#
# jobs/submit.py sets REFUSAL_*; by hand, from the project's folder, a body runs without any of them, under bash and
# sbatch alike:   sbatch --array=1-4 --gres=gpu:1 jobs/inference.sh --config configurations/orbench_run.yaml
# shellcheck shell=bash
set -euo pipefail

root=${REFUSAL_ROOT:-$PWD}
cd "${REFUSAL_WORKDIR:-$root}"
python=${REFUSAL_PYTHON:-$root/.venv/bin/python}
[ -x "$(command -v "$python")" ] || { echo "error: no Python at $python; set python in the resources file" >&2; exit 2; }

# Task i of n, from 1; Slurm, OpenPBS and Torque each name it in their own way, REFUSAL_SHARD is that of a local run.
task=${REFUSAL_SHARD:-${SLURM_ARRAY_TASK_ID:-${PBS_ARRAY_INDEX:-${PBS_ARRAYID:-1}}}}
tasks=${REFUSAL_SHARDS:-${SLURM_ARRAY_TASK_MAX:-1}}
# shellcheck disable=SC2034 # read by the bodies
shard=()
if [ "$tasks" -gt 1 ]; then
    # shellcheck disable=SC2034 # read by the bodies
    shard=(--shard "$task/$tasks")
fi

# limited COMMAND...: under PBS, whose notice before the kill is short, SIGTERM after REFUSAL_SECONDS.
limited() {
    if [ -n "${REFUSAL_SECONDS:-}" ]; then
        start timeout --foreground --preserve-status --signal=TERM "$REFUSAL_SECONDS" "$@"
    fi
    start "$@"
}

# start COMMAND...: become the command, so that signals reach it and its exit status is the job's. With REFUSAL_REQUEUE
# the shell stays: at the notice before the walltime (USR1) it stops the command, and hands the job in again.
start() {
    if [ "${REFUSAL_REQUEUE:-0}" -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
        exec "$@"
    fi
    local noticed='' told='' status=127 code child
    trap 'told=yes; noticed=yes; kill -TERM "$child" 2>/dev/null || true' USR1
    trap 'told=yes; kill -TERM "$child" 2>/dev/null || true' TERM INT
    "$@" &
    child=$!
    while :; do
        told='' code=0
        wait "$child" || code=$?
        [ "$code" -eq 127 ] || status=$code # 127: it was waited for already, when a signal came at its end
        [ -n "$told" ] || break             # else a signal ended the waiting, not the command
    done
    if [ -n "$noticed" ] && [ "$status" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$REFUSAL_REQUEUE" ]; then
        echo "stopped before the walltime; handed in again (${SLURM_RESTART_COUNT:-0} times so far)" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}

# launch SCRIPT...: one process, or one for each GPU.
launch() {
    local processes=${REFUSAL_PROCESSES:-1}
    if [ "$processes" -gt 1 ]; then
        limited "$python" -m torch.distributed.run --standalone --nproc_per_node "$processes" "$@"
    fi
    limited "$python" "$@"
}
