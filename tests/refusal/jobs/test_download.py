"""Models and data of a configuration are fetched from a hub: what is read of them, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from local_hub import COMMIT, GATED, local_hub

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def address():
    """Return the address of a hub of our own."""
    with local_hub() as found:
        yield found


def download(folder: Path, address: str, *arguments: str, **study: object):
    """Run the command as a user does."""
    (folder / "c.yaml").write_text(yaml.safe_dump(study))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "HF_HOME": str(folder / "hf"),
        "HF_ENDPOINT": address,
        "REFUSAL_PYTHON": sys.executable,
    }
    command = ["bash", str(ROOT / "jobs" / "download.sh"), "--config", "c.yaml", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_models_come_with_one_kind_of_weights_and_data_into_its_folder(tmp_path, address):
    models = ["planted/modular", "open/model", "old/model@main"]
    done = download(tmp_path, address, "--data", "some/data", models=models, dataset_dir="data/or-bench")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "All is here. Next: python -m refusal.doctor --config c.yaml\n"
    cached = tmp_path / "hf" / "hub"
    found = {
        folder.name: sorted(path.name for path in (folder / "snapshots" / COMMIT).iterdir())
        for folder in cached.glob("models--*")
    }
    assert found == {
        "models--open--model": ["config.json", "model.safetensors"],
        "models--old--model": ["config.json", "pytorch_model.bin"],
    }
    assert [path.name for path in (tmp_path / "data" / "or-bench").glob("*.csv")] == ["or-bench-80k.csv"]


@pytest.mark.parametrize(
    ("arguments", "study", "expected"),
    [
        ((), {"models": ["none/such"]}, "models: none/such: cannot be downloaded ("),
        ((), {"models": [GATED]}, "a gated model needs its licence accepted on its page and a token: hf auth login"),
        (("--data", "empty/data"), {"dataset_dir": "d"}, "--data empty/data: has no or-bench-*.csv; OR-Bench is"),
        (("--data", "some/data"), {}, "dataset_dir: found embedded, which ships with the package; for --data name"),
    ],
)
def test_what_cannot_be_had_is_one_message(tmp_path, address, arguments, study, expected):
    done = download(tmp_path, address, *arguments, **study)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert expected in line
    assert "Traceback" not in done.stderr


def test_without_network_nothing_is_tried_for_minutes(tmp_path):
    done = download(tmp_path, "http://127.0.0.1:9", models=["open/model"])
    assert done.returncode == 2
    assert "models: open/model: http://127.0.0.1:9 cannot be reached (" in done.stderr
    assert "download on a node with network, e.g. a login node" in done.stderr


@pytest.mark.parametrize("is_active", [True, False])
def test_python_is_the_one_that_has_the_project(tmp_path, is_active):
    for name, is_able in (("active", is_active), (".venv", not is_active)):
        program = tmp_path / name / "bin" / "python"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\n[ "$1" != -c ] || exit {int(not is_able)}\necho {name} "$@"\n')
        program.chmod(0o755)
    script = tmp_path / "jobs" / "download.sh"
    script.parent.mkdir()
    script.write_bytes((ROOT / "jobs" / "download.sh").read_bytes())
    done = subprocess.run(
        ["bash", str(script), "--config", "c.yaml"],
        env={"PATH": f"{tmp_path / 'active' / 'bin'}:{os.defpath}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = "active" if is_active else ".venv"
    assert done.stdout == f"{found} -m refusal.jobs.download --config c.yaml\n"


def test_no_python_with_the_project_is_one_message(tmp_path):
    environment = {"PATH": os.defpath, "REFUSAL_PYTHON": "/nowhere/python"}
    command = ["bash", str(ROOT / "jobs" / "download.sh"), "--config", "c.yaml"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    told = "activate its environment (bash jobs/setup.sh makes one), then again"
    assert done.stderr == f"error: found no project in /nowhere/python: {told}\n"
