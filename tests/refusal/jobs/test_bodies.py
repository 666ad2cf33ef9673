"""The shell bodies: which part a task does, how signals and exit statuses pass, and the set-up of an environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BODIES = sorted((ROOT / "jobs").glob("*.sh"))


@pytest.fixture
def run(tmp_path):
    """Return a function that runs a body with a program in the place of Python, and with clean variables."""
    (tmp_path / "bin").mkdir()

    def program(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
        return path

    def call(body: str, text: str, *arguments: str, scontrol: str = "true", **variables: str):
        program("scontrol", scontrol)
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "REFUSAL_ROOT": str(ROOT),
            "REFUSAL_WORKDIR": str(tmp_path),
            "REFUSAL_PYTHON": str(program("python", text)),
            **variables,
        }
        command = ["bash", str(ROOT / "jobs" / f"{body}.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return call


SAYS = 'echo "$@"'


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ""),
        ({"REFUSAL_SHARDS": "1", "SLURM_ARRAY_TASK_ID": "1"}, ""),
        ({"REFUSAL_SHARDS": "4", "SLURM_ARRAY_TASK_ID": "3"}, " --shard 3/4"),
        ({"REFUSAL_SHARDS": "4", "PBS_ARRAY_INDEX": "2"}, " --shard 2/4"),
        ({"REFUSAL_SHARDS": "4", "PBS_ARRAYID": "2"}, " --shard 2/4"),
        ({"REFUSAL_SHARDS": "4", "REFUSAL_SHARD": "1", "SLURM_ARRAY_TASK_ID": "3"}, " --shard 1/4"),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "5"}, " --shard 3/5"),
    ],
)
@pytest.mark.parametrize(
    ("body", "script"), [("inference", "src/run_inference.py"), ("saes", "run_circuit_analysis.py")]
)
def test_a_task_is_told_its_part_whoever_numbers_it(run, body, script, variables, expected):
    done = run(body, SAYS, "--config", "a b", **variables)
    assert done.stdout == f"{ROOT}/{script} --config a b{expected}\n", done.stderr


@pytest.mark.parametrize("body", ["merge", "circuits"])
def test_what_puts_shards_together_is_one_process_without_a_part(run, body):
    done = run(body, SAYS, "--x", REFUSAL_SHARDS="1", REFUSAL_PROCESSES="4", SLURM_ARRAY_TASK_ID="3")
    assert done.stdout.split()[1:] == ["--x"]
    assert "torch" not in done.stdout


def test_several_gpus_are_used_by_as_many_processes(run):
    done = run("saes", SAYS, REFUSAL_PROCESSES="4")
    expected = f"-m torch.distributed.run --standalone --nproc_per_node 4 {ROOT}/run_circuit_analysis.py\n"
    assert done.stdout == expected


def test_the_report_ends_when_the_metrics_fail(run):
    done = run("report", 'echo "$1"; exit 3', REFUSAL_RESULTS="r")
    assert (done.returncode, done.stdout) == (3, f"{ROOT}/run_analysis.py\n")


def test_a_python_that_is_not_there_is_told(run):
    done = run("inference", SAYS, REFUSAL_PYTHON="/nowhere/python")
    assert (done.returncode, done.stderr) == (
        2,
        "error: no Python at /nowhere/python; set python in the resources file\n",
    )


KEEPS = "trap 'kill $!; echo kept; exit 130' TERM; sleep 20 & "
"""A command that keeps what it has when it is told to stop."""


def test_under_pbs_the_command_is_told_to_stop_in_time_and_its_status_is_kept(run):
    done = run("saes", KEEPS + "wait", REFUSAL_SECONDS="1")
    assert (done.returncode, done.stdout) == (130, "kept\n")


@pytest.mark.parametrize(
    ("signal", "restarts", "is_requeued"), [("USR1", "0", True), ("USR1", "2", False), ("TERM", "0", False)]
)
def test_a_job_is_handed_in_again_only_after_the_notice_of_its_walltime_and_not_for_ever(
    run, signal, restarts, is_requeued
):
    variables = {"REFUSAL_REQUEUE": "2", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
    done = run("saes", f"{KEEPS} kill -{signal} $PPID; wait", scontrol='echo "scontrol $*"', **variables)
    assert done.returncode == 130, done.stderr
    assert done.stdout == "kept\n" + ("scontrol requeue 7\n" if is_requeued else "")


@pytest.mark.parametrize("status", [0, 2, 127, 130])
def test_a_job_that_ends_by_itself_is_not_handed_in_again(run, status):
    done = run("saes", f"exit {status}", scontrol="echo requeued", REFUSAL_REQUEUE="2", SLURM_JOB_ID="7")
    assert (done.returncode, done.stdout) == (status, "")


@pytest.mark.parametrize("path", BODIES, ids=lambda path: path.name)
def test_bodies_are_valid_bash_and_say_what_they_do(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    text = path.read_text()
    assert text.startswith("#!/bin/bash\n# " if path.name != "common.sh" else "# ")
    assert "set -euo pipefail\n" in text


# Set-up --------------------------------------------------------------------------------------------------------------


def set_up(*arguments: str, **variables: str):
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    command = ["bash", str(ROOT / "jobs" / "setup.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_an_environment_is_made_in_scratch_and_activated_by_one_file(tmp_path):
    (tmp_path / "none.txt").touch()
    scratch = tmp_path / "my scratch"
    scratch.mkdir()
    done = set_up("--requirements", str(tmp_path / "none.txt"), SCRATCH=str(scratch))
    assert done.returncode == 0, done.stderr
    folder = scratch / "refusal-circuits"
    shown = subprocess.run(
        ["bash", "-c", '. "$1"; echo "$HF_HOME"; command -v python', "-", str(folder / "activate.sh")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"{folder}/huggingface\n{folder}/env/bin/python\n"
    assert {path.name for path in folder.iterdir()} <= {"env", "huggingface", "tmp", "pip", "activate.sh"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "error: SCRATCH is not set; name a folder: bash jobs/setup.sh FOLDER"),
        (("--nonsense",), "error: --nonsense: allowed are --requirements FILE, --conda and a folder"),
    ],
)
def test_a_set_up_without_a_place_is_refused(arguments, expected):
    done = set_up(*arguments)
    assert (done.returncode, done.stderr) == (2, expected + "\n")
