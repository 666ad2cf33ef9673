"""What must not matter does not: SAE seeds, batch size, dtype, the order of rows; few prompts only widen intervals."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
import yaml

from circuits.job import main
from refusal.artefacts import ResultPaths
from refusal.prompts import embedded
from refusal.schemas import Comparison

MODEL = "planted/partial"
SETTINGS = {
    "models": [MODEL],
    "dataset_dir": "embedded",
    "num_samples_per_category": 60,
    "max_new_tokens": 12,
    "stages": ["inference", "saes", "circuits", "compare"],
    "sae": {"seeds": [0, 1], "steps": 600},
    "analysis": {"bootstrap": 400, "permutations": 0},
}


def compare(folder: Path, **keys: object) -> Comparison:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "result_dir": str(folder / "results"), **keys}))
    assert main(["--config", str(path)]) == 0
    return Comparison.load(ResultPaths(folder / "results").comparison(MODEL))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Comparison:
    """Return the comparison as it is with nothing changed."""
    return compare(tmp_path_factory.mktemp("base"))


def shuffled_files(folder: Path) -> str:
    """Return a folder with the shipped prompts, their rows in another order."""
    for source in embedded.data_dir().glob("*.csv"):
        with source.open(newline="", encoding="utf-8") as handle:
            head, *rows = csv.reader(handle)
        random.Random(1).shuffle(rows)
        with (folder / source.name).open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([head, *rows])
    return str(folder)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 19, "shuffle": False}, {"dtype": "bfloat16"}, {"sae": {"seeds": [7, 8], "steps": 600}}],
    ids=["batches without shuffling", "bfloat16", "SAE seeds"],
)
def test_the_verdict_does_not_depend_on_how_it_was_computed(base, change, tmp_path):
    found = compare(tmp_path, **change)
    assert found.verdict == base.verdict == "PARTIALLY MODULAR"
    assert set(map(frozenset, found.groups)) == set(map(frozenset, base.groups))
    assert found.average_similarity == pytest.approx(base.average_similarity, abs=0.1)


def test_the_order_of_rows_changes_nothing(base, tmp_path):
    (tmp_path / "data").mkdir()
    found = compare(tmp_path, dataset_dir=shuffled_files(tmp_path / "data"))
    assert found.average_similarity == base.average_similarity
    assert found.transfer == base.transfer


def test_fewer_prompts_widen_the_interval_and_flip_no_verdict(base, tmp_path):
    found = compare(tmp_path, num_samples_per_category=20)
    assert found.verdict in (base.verdict, "UNDETERMINED")
    low, high = base.average_similarity_ci
    few_low, few_high = found.average_similarity_ci
    assert few_high - few_low > high - low
