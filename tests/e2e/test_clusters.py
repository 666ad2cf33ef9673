"""The whole study as jobs: on a real Slurm where one can be started, else an emulated one, and on an emulated OpenPBS.

Jobs are stopped as at their walltime, fail, and are handed in again; what comes out is what an undisturbed run writes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import mini_slurm
import pytest
import yaml
from emulated_pbs import EmulatedPbs
from emulated_queue import Stop
from emulated_slurm import EmulatedSlurm

from circuits.job import main
from refusal.artefacts import ResultPaths
from refusal.jobs import command

ROOT = Path(__file__).parents[2]
MODEL = "planted/modular"
STUDY = {
    "models": [MODEL],
    "categories": ["violence", "privacy"],
    "num_samples_per_category": 20,
    "max_new_tokens": 8,
    "activation_layers": ["residuals_0", "residuals_1"],
    # long enough to be stopped in the middle
    "sae": {"seeds": [0], "steps": 600, "d_sae": 32, "k": 4, "stability_halves": False},
    "circuit": {"ig_steps": 2},
    "analysis": {"bootstrap": 100, "permutations": 0},
}
ASKED = {
    "cpus": 1,
    "memory": "512MB",
    "walltime": "00:30:00",
    "prologue": [f"export PYTHONPATH='{ROOT}/src:{ROOT}'", "export HF_HOME=$PWD/../hf"],
    "jobs": {"report": {"cpus": 1, "memory": "512MB"}},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the result folder of the study, run in one process from beginning to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "stages": ["inference", "saes", "circuits", "compare"]}))
    assert main(["--config", str(path), "--result-dir", str(folder / "results")]) == 0
    return ResultPaths(folder / "results")


@pytest.fixture(scope="module")
def slurm():
    """Return a Slurm: a real one of this node, or where it cannot be started an emulated one."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    cluster = mini_slurm.MiniSlurm(folder) if mini_slurm.is_installed() else EmulatedSlurm(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture
def emulated_slurm(tmp_path):
    """Return an emulated Slurm, which stands in where there is no real one."""
    cluster = EmulatedSlurm(tmp_path / "cluster")
    cluster.start()
    return cluster


@pytest.fixture
def pbs(tmp_path):
    """Return an emulated OpenPBS."""
    cluster = EmulatedPbs(tmp_path / "cluster")
    cluster.start()
    return cluster


def written(folder: Path, asked: dict) -> list[str]:
    """Write configuration and resources into a folder and return the options that name them."""
    folder.mkdir(exist_ok=True)
    (folder / "my run.yaml").write_text(yaml.safe_dump({**STUDY, "result_dir": "it's here"}))
    (folder / "resources.yaml").write_text(yaml.safe_dump({**ASKED, **asked}))
    return ["--config", "my run.yaml", "--resources", "resources.yaml"]


@pytest.fixture
def submit(monkeypatch, capsys):
    """Return a function that runs the command in a folder and returns exit status, output and messages."""

    def run(folder: Path, options: list[str], scheduler: str, environment: Mapping[str, str] = MappingProxyType({})):
        with monkeypatch.context() as here:
            here.chdir(folder)
            for name, value in environment.items():
                here.setenv(name, value)
            capsys.readouterr()
            status = command.main(ROOT, [*options, "--scheduler", scheduler])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def logs(results: Path, name: str) -> list[str]:
    """Return the logs of a job, the first first."""
    return [path.read_text() for path in sorted((results / "logs").glob(f"rc-{name}-*.out"))]


def is_training(results: Path) -> bool:
    """Return whether SAE training has begun."""
    return any(": training " in text for text in logs(results, "saes"))


def assert_same(results: Path, expected: ResultPaths) -> None:
    """Compare what a study concludes and the weights it rests on, byte for byte; and see that nothing is held."""
    found = ResultPaths(results)
    assert found.comparison(MODEL).read_bytes() == expected.comparison(MODEL).read_bytes()
    weights = sorted(expected.saes(MODEL).rglob("*.safetensors"))
    assert len(weights) == 2
    for path in weights:
        assert (found.root / path.relative_to(expected.root)).read_bytes() == path.read_bytes()
    assert found.html.exists()
    assert found.analysis_results.exists()
    assert not list(results.glob(".lock*"))


def test_slurm_runs_the_study_with_an_array_and_a_job_stopped_by_its_walltime_goes_on_by_itself(
    slurm, tmp_path, undisturbed, submit
):
    results = tmp_path / "study 1" / "it's here"
    asked = {"requeue": 1, "gpus": 1, "jobs": {**ASKED["jobs"], "inference": {"shards": 2}}}
    options = written(tmp_path / "study 1", asked)
    status, output, messages = submit(tmp_path / "study 1", options, "slurm", slurm.environment)
    assert status == 0, messages
    assert re.search(r"^merge +\d+ +after inference$", output, re.MULTILINE)
    states = slurm.finish(Stop("rc-saes", "USR1", partial(is_training, results)))
    assert states == {
        "rc-inference": ["COMPLETED", "COMPLETED"],
        "rc-merge": ["COMPLETED"],
        "rc-saes": ["COMPLETED"],
        "rc-circuits": ["COMPLETED"],
        "rc-report": ["COMPLETED"],
    }
    (log,) = logs(results, "saes")
    assert "interrupted; what was complete is kept" in log
    assert "stopped before the walltime; handed in again (0 times so far)" in log
    assert re.search(r"going on from step \d+ of 600", log)
    assert_same(results, undisturbed)


def test_pbs_runs_the_study_and_after_a_walltime_the_same_command_resumes(pbs, tmp_path, undisturbed, submit):
    results = tmp_path / "study 2" / "it's here"
    options = written(tmp_path / "study 2", {"gpus": 1, "jobs": {**ASKED["jobs"], "saes": {"shards": 2}}})
    assert submit(tmp_path / "study 2", options, "pbs", pbs.environment)[0] == 0
    states = pbs.finish(Stop("rc-saes", "TERM", partial(is_training, results)))
    assert states == {
        "rc-inference": ["COMPLETED"],
        "rc-saes": ["FAILED", "COMPLETED"],
        "rc-circuits": ["CANCELLED"],
        "rc-report": ["CANCELLED"],
    }
    assert "interrupted; what was complete is kept" in logs(results, "saes")[0]
    assert submit(tmp_path / "study 2", options, "pbs", pbs.environment)[0] == 0
    assert {state for states in pbs.finish().values() for state in states} == {"COMPLETED"}
    assert "inference of planted/modular: up to date" in logs(results, "inference")[-1]
    assert re.search(r"going on from step \d+ of 600", logs(results, "saes")[2])
    assert_same(results, undisturbed)


@pytest.mark.parametrize("kind", ["slurm", "emulated_slurm", "pbs"])
def test_what_follows_a_failing_job_is_taken_out_and_the_exit_status_is_kept(kind, request, tmp_path, submit):
    cluster, scheduler = request.getfixturevalue(kind), kind.removeprefix("emulated_")
    asked = {"gpus": 0, "prologue": ["module() { return 4; }", "module load cuda"]}
    options = written(tmp_path / "study", asked)
    status, _, messages = submit(tmp_path / "study", options, scheduler, cluster.environment)
    assert status == 0, messages
    assert cluster.finish() == {
        "rc-inference": ["FAILED"],
        "rc-saes": ["CANCELLED"],
        "rc-circuits": ["CANCELLED"],
        "rc-report": ["CANCELLED"],
    }
    assert cluster.statuses["rc-inference"] == 4


@pytest.mark.parametrize(
    ("kind", "asked", "expected"),
    [
        ("slurm", {"jobs": {"report": {"partition": "nowhere"}}}, "refused with status 1 (sbatch: error: "),
        ("emulated_slurm", {"options": ["--nonsense=1"]}, "refused with status 255 (sbatch: unrecognized option"),
        ("pbs", {"jobs": {"circuits": {"queue": "nowhere"}}}, "refused with status 170 (qsub: Unknown queue)"),
        ("pbs", {"jobs": {"saes": {"chunk": "colour=red"}}}, "refused with status 187 (qsub: Unknown resource"),
        ("pbs", {"pbs_dialect": "torque"}, "refused with status 241 (qsub: node(s) specification error)"),
    ],
)
def test_a_job_that_is_refused_leaves_nothing_in_the_queue(kind, asked, expected, request, tmp_path, submit):
    cluster, scheduler = request.getfixturevalue(kind), kind.removeprefix("emulated_")
    options = written(tmp_path / "study", {"gpus": 1, **asked})
    status, _, messages = submit(tmp_path / "study", options, scheduler, cluster.environment)
    assert status == 2
    assert expected in messages
    assert "nothing of this study is left in the queue; correct the resources file" in messages
    assert {state for states in cluster.finish().values() for state in states} <= {"CANCELLED"}
    assert not list((tmp_path / "study" / "it's here" / "logs").iterdir())


def test_here_jobs_run_one_after_the_other_and_the_status_of_the_one_that_fails_is_that_of_the_command(
    tmp_path, submit
):
    options = written(
        tmp_path / "study", {"prologue": ["[ $REFUSAL_SHARD -lt 2 ] || exit 4", "[[ $0 != *saes* ]]", "exit"]}
    )
    options += ["--set", "stages=[inference, saes, report]"]
    (tmp_path / "study" / "resources.yaml").write_text(
        yaml.safe_dump({"prologue": ["[ $REFUSAL_SHARD -lt 2 ] || exit 4", "exit"], "jobs": {"saes": {"shards": 3}}})
    )
    status, output, messages = submit(tmp_path / "study", options, "local")
    assert (status, output) == (4, "")
    said = [line[9:] for line in messages.splitlines()]
    assert said[1:3] == [
        "inference: done",
        f"saes 1 of 3: running, log in {tmp_path}/study/it's here/logs/rc-saes_1.out",
    ]
    assert said[5].startswith("saes 2 of 3: ended with status 4; the last lines of ")
    assert not list((tmp_path / "study" / "it's here" / "logs").glob("rc-report*"))
