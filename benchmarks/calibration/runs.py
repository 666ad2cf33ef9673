"""Run the main job on each model of the zoo and collect what it said beside what is true."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml
from sklearn.metrics import adjusted_rand_score

from benchmarks.calibration.zoo import Spec
from refusal.planted.data import write_files
from refusal.planted.folder import TRUTH, load_world

JOB = Path(__file__).parents[2] / "run_circuit_analysis.py"


@dataclass(frozen=True)
class Condition:
    """How a model is run: prompts per category, and which draw of prompts its files hold."""

    prompts: int
    draw: int = 0

    @property
    def name(self) -> str:
        """Name of the folder with the results."""
        return f"{self.prompts}-prompts-draw-{self.draw}"


CONDITIONS = (Condition(100), Condition(100, draw=1), Condition(20), Condition(50))


@dataclass(frozen=True)
class Row:
    """One run: the truth and what was said."""

    model: str
    world: str
    architecture: str
    n_layers: int
    prompts: int
    draw: int
    expected: str
    verdict: str
    baseline: str
    truth: float
    """Share of the pairs of categories that share a mechanism."""
    average: float | None
    low: float | None
    high: float | None
    rand_index: float | None
    """Adjusted Rand index of the groups against the planted ones; None where none were given."""
    decisive_site: str
    shared_from: str
    planted_layers: str


def run_all(out: Path, jobs: int, specs: list[Spec]) -> None:
    """Run every accepted model under every condition that has not been run."""
    tasks = [
        (spec, condition)
        for condition in CONDITIONS
        for spec in specs
        if (out / "models" / spec.name / "accepted").exists()
    ]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda task: _run(out, *task), tasks))


def _run(out: Path, spec: Spec, condition: Condition) -> None:
    model, results = out / "models" / spec.name, _results(out, spec, condition)
    data = model / "data" if condition.draw == 0 else model / f"data-{condition.draw}"
    if not data.exists():
        write_files(load_world(model), data, condition.draw)
    results.mkdir(parents=True, exist_ok=True)
    config = results / "run.yaml"
    settings = {
        "dataset_dir": str(data),
        "models": [str(model)],
        "num_samples_per_category": condition.prompts,
        "stages": ["inference", "saes", "circuits", "compare"],
        "result_dir": str(results),
    }
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, str(JOB), "--config", str(config)]
    with (results / "run.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=log, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _results(out: Path, spec: Spec, condition: Condition) -> Path:
    return out / "runs" / condition.name / spec.name


def collect(out: Path, specs: list[Spec]) -> list[Row]:
    """Return one row for each run that has ended."""
    rows = []
    for condition in CONDITIONS:
        for spec in specs:
            found = list((_results(out, spec, condition) / "circuits").glob("*_comparison.json"))
            if found:
                rows.append(_row(out, spec, condition, json.loads(found[0].read_text(encoding="utf-8"))))
    return rows


def _row(out: Path, spec: Spec, condition: Condition, comparison: dict) -> Row:
    truth = json.loads((out / "models" / spec.name / TRUTH).read_text(encoding="utf-8"))
    group_of = {category: index for index, group in enumerate(truth["groups"]) for category in group}
    names = comparison["categories"]
    pairs = [(a, b) for a in names for b in names if a != b]
    rand_index = None
    if comparison["groups"] is not None:
        found = {category: index for index, group in enumerate(comparison["groups"]) for category in group}
        rand_index = float(adjusted_rand_score([group_of[name] for name in names], [found[name] for name in names]))
    low, high = comparison["average_similarity_ci"]
    return Row(
        model=spec.name,
        world=spec.world,
        architecture=spec.architecture,
        n_layers=spec.n_layers,
        prompts=condition.prompts,
        draw=condition.draw,
        expected=truth["expected_verdict"],
        verdict=comparison["verdict"],
        baseline=comparison["baseline"]["verdict"] or "none",
        truth=sum(group_of[a] == group_of[b] for a, b in pairs) / len(pairs) if pairs else float("nan"),
        average=comparison["average_similarity"],
        low=low,
        high=high,
        rand_index=rand_index,
        decisive_site=comparison["decisive_site"] or "",
        shared_from=comparison["shared_from_site"] or "",
        planted_layers=" ".join(map(str, spec.planted_layers)),
    )


def save(rows: list[Row], path: Path) -> None:
    """Write the rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, [field.name for field in fields(Row)], lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({name: f"{x:.4f}" if isinstance(x, float) else x for name, x in asdict(row).items()})
