"""Controls whose answer is known without planting anything: one category under two names, and shuffled labels."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from circuits.circuit_stage import discover_circuits
from circuits.compare_stage import compare_categories
from circuits.job import main
from refusal.artefacts import ResultPaths
from refusal.config import Config, load
from refusal.models import ChatModel
from refusal.prompts import embedded
from refusal.schemas import Comparison, RefusalLabels

MODEL = "planted/modular"


def run(folder: Path, data: str, stages: list[str]) -> Path:
    path = folder / "run.yaml"
    settings = {
        "models": [MODEL],
        "dataset_dir": data,
        "num_samples_per_category": 60,
        "max_new_tokens": 12,
        "stages": stages,
        "sae": {"seeds": [0, 1], "steps": 600},
        "analysis": {"bootstrap": 400, "permutations": 0},
        "result_dir": str(folder / "results"),
    }
    path.write_text(yaml.safe_dump(settings))
    assert main(["--config", str(path)]) == 0
    return path


def comparison(folder: Path) -> Comparison:
    return Comparison.load(ResultPaths(folder / "results").comparison(MODEL))


def test_one_category_under_two_names_is_one_mechanism_even_in_a_modular_model(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for source in embedded.data_dir().glob("*.csv"):
        with source.open(newline="", encoding="utf-8") as handle:
            chosen = [row["prompt"] for row in csv.DictReader(handle) if row["category"] == "violence"]
        with (data / source.name).open("w", newline="", encoding="utf-8") as handle:
            table = csv.writer(handle)
            table.writerow(["prompt", "category"])
            table.writerows([prompt, ("violence", "hate")[index % 2]] for index, prompt in enumerate(chosen))
    run(tmp_path, str(data), ["inference", "saes", "circuits", "compare"])
    found = comparison(tmp_path)
    assert found.verdict == "MONOLITHIC"
    assert found.average_similarity > 0.9
    assert len(found.groups) == 1


@pytest.fixture(scope="module")
def with_saes(tmp_path_factory):
    """Return the folder of a run whose circuits are still to be found."""
    folder = tmp_path_factory.mktemp("saes")
    run(folder, "embedded", ["inference", "saes"])
    return folder


def copied(source: Path, folder: Path) -> tuple[Config, ResultPaths]:
    """Return configuration and results of a run, copied into another folder."""
    shutil.copytree(source / "results", folder / "results")
    paths = ResultPaths(folder / "results")
    return load(source / "run.yaml").model_copy(update={"result_dir": str(paths.root)}), paths


def test_without_neurons_nothing_is_called_modular(with_saes, tmp_path, monkeypatch):
    config, paths = copied(with_saes, tmp_path)
    monkeypatch.setattr(ChatModel, "neuron_sites", lambda _: [])
    discover_circuits(config, MODEL, paths)
    compare_categories(config, MODEL, paths)
    found = comparison(tmp_path)
    assert found.decisive_site.startswith("residuals")
    assert found.average_similarity < 0.3
    assert found.verdict == "UNDETERMINED"
    assert "may meet in a later block" in found.reason
    assert any("no neurons of a block" in notice for notice in found.notices)


def test_shuffled_labels_give_no_verdict(with_saes, tmp_path):
    config, paths = copied(with_saes, tmp_path)
    file = paths.refusal_labels(MODEL)
    labels = RefusalLabels.load(file)
    generator = np.random.default_rng(0)
    shuffled = {}
    for category in sorted({prompt.category for prompt in labels.prompts}):
        rows = [prompt for prompt in labels.prompts if prompt.category == category]
        behaviours = generator.permutation([prompt.behaviour for prompt in rows])
        shuffled |= {prompt.id: str(behaviour) for prompt, behaviour in zip(rows, behaviours, strict=True)}
    prompts = tuple(prompt.model_copy(update={"behaviour": shuffled[prompt.id]}) for prompt in labels.prompts)
    labels.model_copy(update={"prompts": prompts}).save(file)
    discover_circuits(config, MODEL, paths)
    compare_categories(config, MODEL, paths)
    found = comparison(tmp_path)
    assert found.verdict == "UNDETERMINED"
    assert "toss-ups" in found.reason or "predicts" in found.reason
