"""Scripts ask for what is meant in each scheduler's words, and no path or value can break out of its place."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal.config import Config
from refusal.jobs.chain import Job, Place, chain
from refusal.jobs.dialects import Local, Needed, OpenPbs, Slurm, Torque, dialect_of, explained
from refusal.jobs.resources import JobName, Resources
from refusal.jobs.script import script

PLACE = Place(Path("/project"), Path("/here"), Path("/here/results"), Path("/here/c.yaml"), "/env/bin/python")
ASKED = {
    "gpus": 2,
    "memory": "64GB",
    "account": "lab-1",
    "queue": "gpuq",
    "partition": "gpu",
    "gpu_type": "a100",
    "options": ["--mail-type=FAIL"],
    "jobs": {"inference": {"shards": 4}},
}
NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


def jobs(asked: dict) -> tuple[dict[JobName, Job], Resources]:
    resources = Resources.model_validate(asked)
    return {job.name: job for job in chain(Config(), resources, PLACE)}, resources


def directives(dialect, name=JobName.INFERENCE, **changes) -> list[str]:
    """Return what a script asks for."""
    found, resources = jobs({**ASKED, **changes})
    lines = script(found[name], resources, PLACE, dialect).splitlines()
    assert lines[0] == "#!/bin/bash"
    first_command = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    assert not any(line.startswith(("#SBATCH", "#PBS")) for line in lines[first_command:])
    return [line.split(" ", 1)[1] for line in lines if line.startswith(("#SBATCH", "#PBS"))]


def test_slurm_is_asked_in_its_words():
    assert directives(Slurm()) == [
        "--job-name=rc-inference",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=8",
        "--mem=65536M",
        "--gres=gpu:a100:2",
        "--time=08:00:00",
        "--array=1-4",
        "--output=rc-inference-%A_%a.out",
        "--open-mode=append",
        "--requeue",
        "--signal=B:TERM@120",
        "--partition=gpu",
        "--account=lab-1",
        "--mail-type=FAIL",
    ]
    report = directives(Slurm(), JobName.REPORT, requeue=1, grace=60)
    assert not [line for line in report if line.startswith(("--gres", "--array"))]
    assert "--output=rc-report-%j.out" in report
    assert "--signal=B:USR1@60" in report


def test_openpbs_is_asked_in_its_words():
    assert directives(OpenPbs(), chunk="gpu_model=a100", options=["-M me@here"]) == [
        "-N rc-inference",
        "-S /bin/bash",
        "-l select=1:ncpus=8:ngpus=2:mem=65536mb:gpu_model=a100",
        "-l walltime=08:00:00",
        "-J 1-4",
        "-j oe",
        "-q gpuq",
        "-A lab-1",
        "-M me@here",
    ]
    assert "-l select=1:ncpus=2:mem=16384mb" in directives(OpenPbs(), JobName.REPORT)


def test_torque_is_asked_in_its_words():
    found = directives(Torque())
    assert found[2:6] == ["-l nodes=1:ppn=8:gpus=2", "-l mem=65536mb", "-l walltime=08:00:00", "-t 1-4"]


@pytest.mark.parametrize(
    ("dialect", "needed", "expected"),
    [
        (Slurm(), None, ["sbatch", "--parsable", "--hold", "s"]),
        (
            Slurm(),
            Needed("7", True),
            ["sbatch", "--parsable", "--dependency=afterok:7", "--kill-on-invalid-dep=yes", "s"],
        ),
        (OpenPbs(), None, ["qsub", "-h", "s"]),
        (OpenPbs(), Needed("7[].server", True), ["qsub", "-W", "depend=afterok:7[].server", "s"]),
        (Torque(), Needed("7[].server", True), ["qsub", "-W", "depend=afterokarray:7[].server", "s"]),
        (Torque(), Needed("8.server", False), ["qsub", "-W", "depend=afterok:8.server", "s"]),
        (Local(), None, ["bash", "s"]),
    ],
)
def test_a_job_waits_for_the_one_before_in_each_dialect(dialect, needed, expected):
    found, _ = jobs({})
    assert dialect.submit("s", found[JobName.SAES], needed) == expected


@pytest.mark.parametrize(
    ("dialect", "output", "expected"),
    [
        (Slurm(), "12\n", "12"),
        (Slurm(), "welcome\n12;cluster\n", "12"),
        (Slurm(), "Submitted batch job 12", ""),
        (Slurm(), "", ""),
        (OpenPbs(), "12.server\n", "12.server"),
        (OpenPbs(), "12[].server.domain\n", "12[].server.domain"),
        (OpenPbs(), "qsub: waiting", ""),
        (Torque(), "12[].server", "12[].server"),
    ],
)
def test_the_id_is_read_from_what_the_scheduler_says(dialect, output, expected):
    assert dialect.job_id(output) == expected


def test_what_a_scheduler_has_no_word_for_is_told():
    found, resources = jobs(ASKED)
    requests = [job.request for job in found.values()]
    assert explained(Slurm(), requests) == ["queue is not used: Slurm has no such thing"]
    assert explained(OpenPbs(), requests) == [
        "partition is not used: OpenPBS has no such thing",
        "gpu_type is not used: OpenPBS has no such thing",
    ]
    assert explained(Local(), requests) == []
    assert isinstance(dialect_of("pbs", resources), OpenPbs)
    assert isinstance(dialect_of("pbs", Resources(pbs_dialect="torque")), Torque)


def test_threads_follow_from_cores_and_processes_and_a_local_run_changes_no_environment(monkeypatch):
    monkeypatch.setenv("HF_HOME", "hf")
    found, resources = jobs({"cpus": 8, "gpus": 4})
    text = script(found[JobName.SAES], resources, PLACE, Slurm())
    assert "export OMP_NUM_THREADS=2\n" in text
    assert "export REFUSAL_PROCESSES=4\n" in text
    assert f"export HF_HOME={Path.cwd()}/hf\n" in text
    assert "export HF_HUB_OFFLINE=1\n" in text
    local = script(found[JobName.SAES], resources, PLACE, Local())
    assert not any(name in local for name in ("OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE"))
    circuits = script(found[JobName.CIRCUITS], resources, PLACE, Slurm())
    assert "export OMP_NUM_THREADS=8\n" in circuits
    assert "export REFUSAL_PROCESSES=1\n" in circuits
    online = script(found[JobName.SAES], Resources(offline=False), PLACE, Slurm())
    assert "HF_HUB_OFFLINE" not in online


@settings(max_examples=40)
@given(folder=NAME, name=NAME, value=NAME, dialect=st.sampled_from([Slurm(), OpenPbs(), Torque(), Local()]))
def test_whatever_stands_in_paths_and_values_the_body_gets_it_as_it_is(tmp_path_factory, folder, name, value, dialect):
    root = tmp_path_factory.mktemp("root") / folder
    place = Place(root, root, root / "results", root / name, value)
    (root / "jobs").mkdir(parents=True)
    place.logs.mkdir(parents=True)
    (root / "jobs" / "saes.sh").write_text(
        'printf "%s\\0" "$@" "$PWD" "$REFUSAL_ROOT" "$REFUSAL_PYTHON" >"$REFUSAL_ROOT/told"\n'
    )
    resources = Resources()
    (job,) = (each for each in chain(Config(), resources, place, ("--set", value)) if each.name is JobName.SAES)
    text = script(job, resources, place, dialect)
    done = subprocess.run(["bash"], input=text.encode(), env={"PBS_JOBID": "1.s"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    told = (root / "told").read_bytes().decode().split("\0")[:-1]
    assert told == [*job.arguments, str(place.logs), str(root), value]
