"""What has changed since it was written is never read as good: it is made anew, or told with what to do."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

import run_analysis
from circuits.job import inference_main, main
from refusal.artefacts import ResultPaths
from refusal.errors import ArtefactError
from refusal.prompts import embedded
from refusal.sae.checkpoint import Checkpoint, State
from refusal.stages import signatures

MODEL = "planted/partial"
SMALL = {
    "models": [MODEL],
    "categories": ["violence", "privacy"],
    "num_samples_per_category": 24,
    "max_new_tokens": 6,
    "activation_layers": ["residuals_1"],
    "sae": {"seeds": [0], "steps": 40, "d_sae": 32, "k": 4, "stability_halves": False},
    "analysis": {"bootstrap": 100, "permutations": 20},
}
FOLDERS = ("activations", "circuits", "evaluation_results", "model_outputs", "refusal_labels", "saes")


def command(root: Path, *flags: str, **keys: object) -> list[str]:
    path = root.parent / f"{root.name}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "result_dir": str(root), **keys}))
    return ["--config", str(path), *flags]


def results(root: Path) -> dict[str, bytes]:
    files = (path for folder in FOLDERS for path in sorted((root / folder).rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the result folder of a run with all stages but the report, which writes nothing that is read again."""
    root = tmp_path_factory.mktemp("whole") / "results"
    assert main(command(root, "--stages", "inference,saes,circuits,compare")) == 0
    return root


@pytest.fixture
def root(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "results")
    return tmp_path / "results"


def flip(path: Path, generator: random.Random) -> None:
    """Change one bit, and neither size nor time of change."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path, generator: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])


def remove(path: Path, generator: random.Random) -> None:
    path.unlink()


DAMAGES = {"flipped": flip, "cut off": cut, "missing": remove}
NOT_READ = ("README.md", "_effects.safetensors")
"""Written for people and for later analyses; no stage reads them."""


def kinds(root: Path) -> list[Path]:
    """Return one file of each kind that a stage reads."""
    found = {}
    for name in results(root):
        path = root / name
        if not name.endswith(NOT_READ):
            found.setdefault((name.split("/")[0], path.name.replace("violence", "privacy")), path)
    return list(found.values())


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_that_a_stage_reads_is_made_anew_once_it_is_damaged(whole, root, damage, caplog, monkeypatch):
    monkeypatch.setattr(signatures, "SMALL_FILE", 0)  # as if all were large, and were believed by size and time
    generator, wanted, files = random.Random(damage), results(whole), kinds(root)
    assert len(files) >= 12
    for path in generator.sample(files, 5 if damage == "flipped" else 2):
        signatures._digest.cache_clear()
        DAMAGES[damage](path, generator)
        ResultPaths(root).stage_record("compare", MODEL).unlink(missing_ok=True)  # a stage that reads all others
        caplog.clear()
        assert main(command(root, "--stages", "inference,saes,circuits,compare")) == 0, path
        assert results(root) == wanted, path
        if damage == "flipped" and not path.name.endswith("_comparison.json"):  # which compare itself writes
            assert path.name in caplog.text, path


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_its_stage_is_not_asked_for_the_file_and_what_to_do_are_told(whole, root, damage, capsys, monkeypatch):
    monkeypatch.setattr(signatures, "SMALL_FILE", 0)
    generator, wanted = random.Random(damage), results(whole)
    for path in kinds(root):
        if path.name.endswith("_comparison.json"):
            continue
        signatures._digest.cache_clear()
        DAMAGES[damage](path, generator)
        capsys.readouterr()
        is_told = main(command(root, "--stages", "compare", "--force", "compare")) == 2
        said = capsys.readouterr().err
        assert is_told, path
        assert path.name in said, said
        assert "run: python" in said
        assert "Traceback" not in said
        shutil.copy2(whole / path.relative_to(root), path)
    assert wanted == results(root) | {
        name: it for name, it in wanted.items() if "_effects" in name or "_compar" in name
    }


@pytest.mark.parametrize("of", [ResultPaths.comparison, ResultPaths.evaluation, ResultPaths.model_outputs])
def test_a_report_of_damaged_files_is_not_written(root, of, capsys, monkeypatch):
    monkeypatch.setattr(signatures, "SMALL_FILE", 0)
    path = of(ResultPaths(root), MODEL)
    flip(path, random.Random(2))
    signatures._digest.cache_clear()
    assert main(command(root, "--stages", "report")) == 2
    assert f"{path}: damaged (it is not what" in capsys.readouterr().err
    assert not (root / "report.html").exists()


@pytest.mark.parametrize("name", ["labels", "outputs"])
def test_metrics_of_a_damaged_folder_are_not_given(root, name, capsys):
    paths = ResultPaths(root)
    path = paths.refusal_labels(MODEL) if name == "labels" else paths.model_outputs(MODEL)
    path.write_bytes(path.read_bytes().replace(b"sorry", b"sarry", 1).replace(b'"refused"', b'"complied"', 1))
    assert run_analysis.main(["--results-dir", str(root)]) == 2
    said = capsys.readouterr().err
    assert f"{path}: damaged or edited (its content does not fit the checksum in it); delete it and run:" in said


@pytest.mark.parametrize("name", ["shard-00000.json", "shard-00000.safetensors"])
def test_a_shard_that_was_damaged_after_a_kill_is_captured_again(whole, root, name):
    folder = ResultPaths(root).activations(MODEL)
    (folder / "index.json").unlink()
    ResultPaths(root).stage_record("inference", MODEL).unlink()
    flip(folder / name, random.Random(3))
    assert main(command(root, "--stages", "inference")) == 0
    assert results(root) == results(whole)


@pytest.mark.parametrize(
    "name", ["cfg.json", "sae_weights.safetensors", "metrics.json", "residuals_1_training_history.json"]
)
def test_an_sae_that_was_damaged_after_a_kill_is_trained_again(whole, root, name):
    ResultPaths(root).stage_record("saes", MODEL).unlink()
    flip(ResultPaths(root).saes(MODEL) / "residuals_1" / name, random.Random(4))
    assert main(command(root, "--stages", "saes")) == 0
    assert results(root) == results(whole)


def test_a_damaged_checkpoint_of_a_training_is_not_gone_on_with(tmp_path):
    import torch

    generator, saved = random.Random(5), Checkpoint(tmp_path, "f" * 64)
    state = State({"a": torch.randn(7, 3), "b": torch.zeros(0), "c": torch.tensor(True)}, {"step": 7, "best": 0.1})
    saved.save(state)
    whole = saved.path.read_bytes()
    for _ in range(300):
        saved.path.write_bytes(whole)
        flip(saved.path, generator)
        try:
            found = saved.load()
        except ArtefactError as error:
            assert str(saved.path) in str(error)  # noqa: PT017 - the rare flip that changes nothing must pass
        else:
            assert found is not None
            assert {name: each.tolist() for name, each in found.tensors.items()} == {
                name: each.tolist() for name, each in state.tensors.items()
            }


def test_a_record_that_names_files_outside_deletes_none(root, tmp_path):
    outside = tmp_path / "mine.txt"
    outside.write_text("mine")
    path = ResultPaths(root).stage_record("compare", MODEL)
    record = json.loads(path.read_text())
    del record["checksum"]
    record["outputs"]["../mine.txt"] = record["outputs"][next(iter(record["outputs"]))]
    path.write_text(json.dumps(record))
    assert main(command(root, "--stages", "compare", "--force", "compare")) == 0
    assert outside.read_text() == "mine"


# What a run reads from outside ----------------------------------------------------------------------------------------


def copied_model(folder: Path) -> Path:
    shutil.copytree(embedded.model_path(MODEL), folder)
    return folder


def swap(path: Path) -> None:
    """Put another model's weights in the place of these, of the same size and time of change."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[-4000:-2000] = content[-2000:]
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_model_file_that_was_swapped_between_runs_is_noticed(tmp_path, caplog):
    model, root = copied_model(tmp_path / "model"), tmp_path / "r"
    words = command(root, "--stages", "inference", models=[str(model)])
    assert main(words) == 0
    before = results(root)
    swap(model / "model.safetensors")
    signatures._digest.cache_clear()  # as in a new process
    with caplog.at_level("INFO", "refusal"):
        assert main(words) == 0
    assert "running (model.safetensors changed)" in caplog.text
    assert results(root) != before


def test_a_model_file_that_was_swapped_during_a_run_is_told(tmp_path, capsys, monkeypatch):
    from refusal.inference import stage as inference

    model, root = copied_model(tmp_path / "model"), tmp_path / "r"
    original = inference.Inference.finish

    def finish(self):
        original(self)
        content = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(content[:-1] + b"\x01")

    monkeypatch.setattr(inference.Inference, "finish", finish)
    words = command(root, "--stages", "inference", models=[str(model)])
    assert main(words) == 2
    assert "model.safetensors was changed while inference of" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(words) == 0


def hub_with(folder: Path, commit: str) -> Path:
    """Return the snapshot of someone/tiny in a hub cache, as a download would leave it: links to blobs."""
    repository = folder / "models--someone--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir(exist_ok=True)
    for path in embedded.model_path(MODEL).iterdir():
        blob = repository / "blobs" / f"{commit[:4]}{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def test_a_model_of_the_hub_is_known_by_its_files_and_may_leave_the_cache(tmp_path, caplog, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "r"
    words = command(root, models=["someone/tiny"])
    snapshot = hub_with(tmp_path / "hub", "a" * 40)
    assert inference_main(words) == 0
    before = results(root)

    def says(expected: str) -> None:
        signatures._digest.cache_clear()
        assert main([*words, "--stages", "inference", "--dry-run"]) == 0
        assert expected in capsys.readouterr().out

    says("up to date")
    (tmp_path / "hub").rename(tmp_path / "gone")
    says("up to date")  # what is not there cannot have changed
    (tmp_path / "gone").rename(tmp_path / "hub")
    says("up to date")
    swap((snapshot / "model.safetensors").resolve())
    says("to do: model.safetensors changed")
    hub_with(tmp_path / "hub", "b" * 40)  # another revision with the same files
    says("up to date")
    assert results(root) == before


def test_pretrained_saes_that_were_swapped_are_noticed(root, tmp_path, capsys):
    saes = tmp_path / "saes"
    shutil.copytree(ResultPaths(root).saes(MODEL), saes)
    words = command(root, "--stages", "saes", sae={"pretrained": str(saes)})
    assert main(words) == 0
    signatures._digest.cache_clear()
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("up to date") >= 2
    swap(saes / "residuals_1" / "sae_weights.safetensors")
    signatures._digest.cache_clear()
    assert main([*words, "--dry-run"]) == 0
    assert "sae_weights.safetensors changed" in capsys.readouterr().out
