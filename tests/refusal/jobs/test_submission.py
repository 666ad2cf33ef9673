"""A chain is handed in whole or not at all; a dry run writes nothing; a local run stops when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from emulated_pbs import EmulatedPbs

from refusal.jobs import command

ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return a folder with a configuration, in which commands run."""
    monkeypatch.chdir(tmp_path)
    study = {"models": ["planted/modular"], "result_dir": "results", "stages": ["inference", "saes"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(study))
    return tmp_path


def submit(*arguments: str) -> int:
    return command.main(ROOT, ["--config", "c.yaml", *arguments])


def program(folder: Path, name: str, text: str) -> None:
    """Put a program of a scheduler into a folder."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("scheduler", ["slurm", "pbs", "local"])
def test_a_dry_run_shows_scripts_and_commands_and_writes_nothing(here, capsys, scheduler):
    assert submit("--scheduler", scheduler, "--dry-run", "--set", "seed=3") == 0
    shown = capsys.readouterr().out
    for name in ("inference", "saes"):
        assert f"# ---- {here}/results/jobs/{name}.sh\n#!/bin/bash\n" in shown
    assert f"exec bash {ROOT}/jobs/saes.sh --config {here}/c.yaml --set seed=3 --stages saes\n" in shown
    assert [path.name for path in here.iterdir()] == ["c.yaml"]
    commands = shown.rpartition("# ---- commands\n")[2].splitlines()
    assert commands[:2] == [f"mkdir -p {here}/results/logs", f"cd {here}/results/logs"]
    scripts = [f"{here}/results/jobs/{name}.sh" for name in ("inference", "saes")]
    after = "--dependency=afterok:ID_OF_INFERENCE --kill-on-invalid-dep=yes"
    assert (
        commands[2:]
        == {
            "slurm": [
                f"sbatch --parsable --hold {scripts[0]}",
                f"sbatch --parsable {after} {scripts[1]}",
                "scontrol release ID_OF_INFERENCE",
            ],
            "pbs": [
                f"qsub -h {scripts[0]}",
                f"qsub -W depend=afterok:ID_OF_INFERENCE {scripts[1]}",
                "qrls ID_OF_INFERENCE",
            ],
            "local": [f"bash {script}" for script in scripts],
        }[scheduler]
    )


@pytest.mark.parametrize(("scheduler", "program_name"), [("slurm", "sbatch"), ("pbs", "qsub")])
def test_a_scheduler_that_is_not_here_is_told(here, capsys, monkeypatch, scheduler, program_name):
    monkeypatch.setenv("PATH", str(here))
    assert submit("--scheduler", scheduler) == 2
    assert f"--scheduler: {program_name} is not on this machine; submit from a login node" in capsys.readouterr().err
    assert not (here / "results").exists()


def test_models_and_data_that_are_not_here_are_told_before_anything_is_handed_in(here, capsys):
    assert submit("--scheduler", "local", "--set", "models=[planted/x, meta-llama/none]", "--set", "dataset_dir=x") == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[-1] for line in said if "did you mean" in line]
    assert len(said) == 3
    assert "hf download meta-llama/none" in said[2]
    assert not (here / "results").exists()


def test_a_command_that_says_no_id_takes_back_what_was_handed_in(here, capsys, monkeypatch):
    count = 'echo "$0 $*" >>../../called; [ -e ../../once ] || { touch ../../once; echo 5; exit; }; echo hello'
    program(here / "bin", "sbatch", count)
    program(here / "bin", "scancel", 'echo "scancel $*" >>../../called')
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    assert submit("--scheduler", "slurm") == 2
    assert "found no job id in what it said ('hello')" in capsys.readouterr().err
    assert (here / "called").read_text().splitlines()[-1] == "scancel 5"


def test_a_job_that_cannot_be_released_takes_the_chain_back(here, capsys, monkeypatch):
    cluster = EmulatedPbs(here / "cluster")
    cluster.start()
    program(cluster.folder / "bin", "qrls", "echo no; exit 1")
    monkeypatch.setenv("PATH", cluster.environment["PATH"])
    assert submit("--scheduler", "pbs") == 2
    assert "qrls 1.server: refused with status 1 (no)" in capsys.readouterr().err
    assert [job.state for job in cluster.jobs()] == ["CANCELLED", "CANCELLED"]


def test_a_result_folder_that_cannot_be_written_is_told(here, capsys):
    (here / "file").touch()
    assert submit("--scheduler", "local", "--result-dir", "file") == 2
    assert f"result_dir: {here}/file cannot be written (" in capsys.readouterr().err


def test_a_local_run_that_is_told_to_stop_stops_its_job_and_waits_for_it(here):
    (here / "r.yaml").write_text(
        yaml.safe_dump({"prologue": ["trap 'echo kept; exit 130' TERM", "touch ../../begun", "sleep 60 & wait"]})
    )
    words = ["--config", "c.yaml", "--scheduler", "local", "--resources", "r.yaml"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "submit.py"), *words], env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (here / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert messages.endswith("interrupted; what was complete is kept, the same command resumes\n")
    assert (here / "results" / "logs" / "rc-inference.out").read_text() == "kept\n"


# The emulated server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status", "said"),
    [
        ("#PBS -l nodes=1:ppn=1:gpus=1", 241, "node(s) specification error"),
        ("#PBS -t 0-9", 1, "directive error"),
        ("#PBS -J 0-0", 2, "illegal -J value"),
        ("#PBS -l walltme=1:00:00", 187, "Unknown resource Resource_List.walltme"),
        ("#PBS -q nowhere", 170, "Unknown queue"),
        ("#PBS -l nodes=1:ppn=1\n#PBS -l select=1", 6, "cannot be used with"),
        ("#PBS -l nodes=1:ppn=1", 0, ""),
        ("#PBS -l select=1:ncpus=8:ngpus=1:mem=64gb\n#PBS -J 0-3", 0, ""),
        ("cd /\n#PBS -q nowhere", 0, ""),
    ],
)
def test_the_emulated_server_answers_as_the_real_one_did(tmp_path, header, status, said):
    cluster = EmulatedPbs(tmp_path / "cluster")
    cluster.start()
    (tmp_path / "job").write_text(f"#!/bin/bash\n{header}\necho $PBS_JOBID $PBS_ARRAY_INDEX $HOME; pwd; exit 3\n")
    environment = {**os.environ, **cluster.environment}
    done = subprocess.run(
        ["qsub", "job"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, said in done.stderr) == (status, True)
    if not status and "-J" in header:
        assert done.stdout == "1[].server\n"
        cluster.finish()
        home = cluster.folder / "home"
        assert (tmp_path / "job.o1.2").read_text() == f"1[2].server 2 {home}\n{home}\n"
        assert cluster.statuses == {"job": 3}
