"""A run of two processes writes what a run of one writes, byte for byte, and fails as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from circuits.job import main
from refusal.artefacts import ResultPaths
from refusal.errors import InputError
from refusal.processes import WHOLE, Part, this_part
from refusal.run_lock import LOCK_NAME

MODEL = "planted/monolithic"
ROOT = Path(__file__).parents[2]


def configured(folder: Path, **sae: object) -> Path:
    path = folder / "run.yaml"
    settings = {
        "models": [MODEL],
        "num_samples_per_category": 30,
        "max_new_tokens": 8,
        "stages": ["inference", "saes"],
        "activation_layers": ["residuals_1", "residuals_3"],
        # too large to train in one stack
        "sae": {"seeds": [0, 1], "steps": 40, "d_sae": 512, "k": 4, "batch_size": 256, **sae},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def two_processes(config: Path, results: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    job = [str(ROOT / "run_circuit_analysis.py"), "--config", str(config), "--result-dir", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *job], capture_output=True, text=True, timeout=300, env=environment, check=False)


def test_two_processes_share_the_saes_and_write_the_same_bytes(tmp_path):
    config = configured(tmp_path)
    assert main(["--config", str(config), "--result-dir", str(tmp_path / "one")]) == 0
    done = two_processes(config, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("saes of planted/monolithic: done") == 1, "only the first process speaks"
    one, two = (ResultPaths(tmp_path / name).saes(MODEL) for name in ("one", "two"))
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len([name for name in names if name.name == "sae_weights.safetensors"]) == 4
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert not (tmp_path / "two" / LOCK_NAME).exists()


def test_a_mistake_that_all_find_is_told_once_and_ends_the_run(tmp_path):
    done = two_processes(configured(tmp_path, d_sae=100_000), tmp_path / "two")
    assert done.returncode != 0
    assert done.stderr.count("error: sae.d_sae: is 100000") == 1


@pytest.mark.parametrize(
    ("rank", "size", "expected"), [(None, None, WHOLE), ("0", "1", WHOLE), ("1", "2", Part(1, 2)), (None, "1", None)]
)
def test_the_launcher_says_which_process_this_is(monkeypatch, rank, size, expected):
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    if expected is None:
        with pytest.raises(InputError, match=r"RANK=None, WORLD_SIZE=1: .* start with torchrun"):
            this_part()
    else:
        assert this_part() == expected
