"""A run of two processes writes what a run of one writes, byte for byte, and fails as one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from circuits.job import main
from refusal.artefacts import ResultPaths
from refusal.errors import InputError
from refusal.processes import WHOLE, Part, this_part
from refusal.stages.run_lock import LOCK_NAME

MODEL = "planted/monolithic"
OUTPUTS = ("activations", "refusal_labels", "model_outputs", "evaluation_results", "saes")
ROOT = Path(__file__).parents[2]


def configured(folder: Path, **sae: object) -> Path:
    path = folder / "run.yaml"
    settings = {
        "models": [MODEL],
        "num_samples_per_category": 30,
        "max_new_tokens": 8,
        "stages": ["inference", "saes"],
        "activation_layers": ["residuals_1", "residuals_3"],
        # too large to train in one stack: there are two, so each process has one
        "sae": {"seeds": [0, 1], "steps": 40, "d_sae": 768, "k": 4, "batch_size": 256, **sae},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def two_processes(config: Path, results: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    job = [str(ROOT / "run_circuit_analysis.py"), "--config", str(config), "--result-dir", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *job], capture_output=True, text=True, timeout=300, env=environment, check=False)


def files_under(folder: Path) -> dict[str, bytes]:
    """Return what the stages wrote; records and manifest hold times."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if name.parts[0] in OUTPUTS}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results of a run of one process."""
    folder = tmp_path_factory.mktemp("one")
    assert main(["--config", str(configured(folder)), "--result-dir", str(folder / "results")]) == 0
    return folder / "results"


def test_two_processes_share_prompts_and_saes_and_write_the_same_bytes(one, tmp_path):
    done = two_processes(configured(tmp_path), tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("saes of planted/monolithic: done") == 1, "only the first process speaks"
    wanted, found = files_under(one), files_under(tmp_path / "two")
    assert len([name for name in wanted if name.endswith("sae_weights.safetensors")]) == 4
    assert len([name for name in wanted if "shard-" in name and name.endswith(".json")]) == 2
    assert wanted.keys() == found.keys()
    for name in wanted:
        assert wanted[name] == found[name], name
    assert not (tmp_path / "two" / LOCK_NAME).exists()


def test_shards_of_the_saes_stage_and_the_stage_after_them_write_the_same_bytes(one, tmp_path, capsys):
    results = tmp_path / "shards"
    shutil.copytree(one, results)
    shutil.rmtree(results / "saes")
    (results / "run_manifest.json").unlink()
    record = ResultPaths(results).stage_record("saes", MODEL)
    record.unlink()
    command = ["--config", str(configured(tmp_path)), "--result-dir", str(results), "--stages", "saes"]
    made = []
    for number in (1, 2):
        assert main([*command, "--shard", f"{number}/2"]) == 0
        made.append(len(list((results / "saes").rglob("sae_weights.safetensors"))))
    assert made == [2, 4]
    assert not record.exists()
    assert not (results / "run_manifest.json").exists()
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--result-dir {results} --stages saes")
    assert main(command) == 0
    assert record.exists()
    assert files_under(results) == files_under(one)


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
