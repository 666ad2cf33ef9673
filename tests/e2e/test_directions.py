"""Refusal directions through the entry point, on planted models whose mechanism is known."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from circuits.directions import stage as direction_stage
from circuits.directions.verdict import StatementFile
from circuits.job import directions_main
from refusal.artefacts import ResultPaths
from refusal.directions import stage
from refusal.directions.formats import read_published, read_split
from refusal.directions.found import Found

FIGURES = ("selection", "doses", "trials", "layers", "contrasts", "cosines", "transfer", "depth", "components")
FIGURES += ("histograms", "projections", "categories")
SMALL = {
    "dataset_dir": "embedded",
    "num_samples_per_category": 40,
    "max_new_tokens": 12,
    "analysis": {"bootstrap": 200, "permutations": 20},
    "directions": {"coefficients": [0.5, 1], "controls": 2, "test_prompts": 40},
}


def run(folder: Path, *flags: str, **keys: object) -> int:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "result_dir": str(folder / "results"), **keys}))
    return directions_main(["--config", str(path), *flags])


def load(folder: Path, model: str) -> Found:
    return Found.load(ResultPaths(folder / "results"), model)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def directed(tmp_path_factory):
    """Return a folder in which the directions of the monolithic model were found."""
    folder = tmp_path_factory.mktemp("directions")
    assert run(folder, models=["planted/monolithic"]) == 0
    return folder


def refused(found: Found, condition: str, side: str) -> float:
    return found.conditions[condition].groups[side].refused.value


def test_on_the_monolithic_model_the_direction_is_necessary_and_sufficient_and_random_ones_are_not(directed):
    found = load(directed, "planted/monolithic")
    assert found.selection.fallback is None, "the selected direction passes every published filter"
    assert found.directions.chosen.layer >= 1, "read after the first shared slice"
    assert refused(found, "baseline", "refused") == 1
    assert refused(found, "ablation", "refused") <= 0.1
    assert found.conditions["ablation"].groups["refused"].complied.value >= 0.9, "the answers still make sense"
    assert refused(found, "baseline", "complied") == 0
    assert refused(found, "addition", "complied") >= 0.9
    assert refused(found, "subtraction", "refused") <= 0.1
    curves = {curve.intervention: {abs(point.dose): point for point in curve.points} for curve in found.doses.curves}
    assert max(curves["addition"][1].random_refused) <= 0.1
    assert min(curves["ablation"][1].random_refused) >= 0.9
    assert min(curves["subtraction"][1].random_refused) >= 0.9
    for category in found.directions.n_by_category:
        assert refused(found, "ablation", f"refused: {category}") <= 0.1


def test_taking_the_direction_to_zero_leaves_these_models_undecided(directed):
    """Why ablation leaves what complied prompts have: these models' complied prompts are far from a projection of 0."""
    found = load(directed, "planted/monolithic")
    assert found.directions.chosen.ablate_to == "complied"
    assert refused(found, "published ablation", "refused") > 0.5
    assert refused(found, "published ablation", "complied") > 0.5
    there = [each for each in found.selection.candidates if each.layer == found.directions.chosen.layer]
    to_zero = next(each for each in there if each.ablate_to == "zero")
    assert "KL" in to_zero.left_out, "the published filter leaves it out for what it does to complied prompts"


def test_the_directions_of_the_monolithic_model_are_one(directed):
    said = StatementFile.load(ResultPaths(directed / "results").directions("planted/monolithic") / "statement.json")
    assert said.commit_site == "residuals_2"
    assert said.statement.answer == "one direction"
    assert said.statement.mean.low > 0.9


def test_doses_rise_and_ordinary_text_is_hardly_touched_by_ablation(directed):
    found = load(directed, "planted/monolithic")
    for curve in found.doses.curves:
        means = [point.metric.value for point in curve.points]
        assert curve.points[0].dose == 0
        assert (means == sorted(means)) if curve.intervention == "addition" else (means[-1] < means[0] - 5)
        assert all(point.metric.low <= point.metric.value <= point.metric.high for point in curve.points)
    plain, ablated, added = (found.conditions[name].perplexity.value for name in ("baseline", "ablation", "addition"))
    assert ablated < 1.05 * plain < added


def test_probes_and_separation_tell_the_sides_apart(directed):
    directions = load(directed, "planted/monolithic").directions
    assert {probe.kind for probe in directions.probes} == {"logistic", "mass_mean", "mass_mean_covariance"}
    assert all(probe.accuracy.value > 0.9 and probe.auc.low > 0.9 for probe in directions.probes)
    assert all(each.separation.low > 1 for each in directions.separation)
    n = directions.n
    assert n["train"]["refused"] > n["test"]["refused"] > n["validation"]["refused"] > 10


def test_the_published_layout_the_splits_the_table_and_the_figures_are_there(directed):
    paths = ResultPaths(directed / "results")
    for model in ("planted/monolithic",):
        folder, found = paths.directions(model), load(directed, model)
        published = read_published(folder)
        assert published.is_consistent
        assert published.layer == found.directions.chosen.layer + 1
        assert float(published.direction.norm()) == pytest.approx(found.directions.chosen.norm)
        ids = {
            part: {each.instruction for each in read_split(folder / "splits" / f"harmful_{part}.json")}
            for part in ("train", "validation", "test")
        }
        assert len(set.union(*ids.values())) == sum(map(len, ids.values())), "no prompt is in two splits"
        rows = (folder / "selection.csv").read_text().splitlines()
        for row in csv.DictReader(rows):
            assert float(row["bypass_low"]) <= float(row["bypass"]) <= float(row["bypass_high"])
        assert len(rows) == 1 + len(found.selection.candidates)
        assert sum(row.endswith("True") for row in rows) == 1
        for figure in FIGURES:
            assert paths.direction_plot(model, figure).stat().st_size > 10_000
        assert "Random directions of equal norm" in (folder / "summary.txt").read_text()


def test_running_again_changes_no_file(directed, capsys):
    stamps = {path: path.stat().st_mtime_ns for path in (directed / "results" / "directions").rglob("*")}
    assert run(directed, models=["planted/monolithic"]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert "directions" in capsys.readouterr().out


def test_a_run_that_is_stopped_goes_on_after_what_it_had(directed, tmp_path, monkeypatch):
    wanted = content(directed / "results" / "directions" / "planted__monolithic")
    shutil.copytree(directed / "results", tmp_path / "results")
    folder = tmp_path / "results" / "directions" / "planted__monolithic"
    shutil.rmtree(folder)
    made = stage.dose_curve

    def stop_at_the_second(name, *arguments):
        if name == "subtraction":
            raise KeyboardInterrupt
        return made(name, *arguments)

    monkeypatch.setattr(direction_stage, "figures", lambda drawn: {})
    monkeypatch.setattr(stage, "dose_curve", stop_at_the_second)
    assert run(tmp_path, models=["planted/monolithic"]) == 130
    assert not (folder / "directions.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in [folder / "selection.json", *folder.glob("responses/*")]}
    assert len(kept) >= 5
    asked = []
    monkeypatch.setattr(stage, "dose_curve", lambda name, *arguments: asked.append(name) or made(name, *arguments))
    assert run(tmp_path, models=["planted/monolithic"]) == 0
    assert asked == ["subtraction", "ablation"], "the first curve was kept"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert content(folder) == wanted


def test_a_model_that_never_refuses_has_no_direction_and_says_why(llama_folder, tmp_path):
    assert run(tmp_path, models=[str(llama_folder)], num_samples_per_category=4) == 0
    paths = ResultPaths(tmp_path / "results")
    directions = Found.load(paths, str(llama_folder)).directions
    assert directions.chosen is None
    assert "the refusal metric could not be learned" in directions.reason
    assert "None: the refusal metric" in (paths.directions(str(llama_folder)) / "summary.txt").read_text()


def test_too_few_refusals_are_told_with_their_number(tmp_path):
    assert run(tmp_path, models=["planted/modular"], categories=["privacy"], num_samples_per_category=12) == 0
    reason = load(tmp_path, "planted/modular").directions.reason
    assert reason.startswith("only ")
    assert "a direction needs at least 8" in reason


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"directions": {"split": [0.5, 0.5, 0.5]}}, "must sum to 1"),
        ({"directions": {"coefficients": [1, 0.5]}}, "doses must ascend"),
        ({"directions": {"steer_at": "end"}}, "directions.steer_at"),
        ({"directions": {"control": 3}}, "did you mean controls"),
        ({"directions": {"text_file": "nowhere.txt"}}, "directions.text_file: nowhere.txt: cannot be read"),
    ],
)
def test_bad_input_is_told_before_a_model_loads(tmp_path, capsys, keys, said):
    assert run(tmp_path, **keys) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_more_positions_than_tokens_are_refused(directed, tmp_path, capsys):
    shutil.copytree(directed / "results", tmp_path / "results")
    directions = {**SMALL["directions"], "n_positions": 999}
    assert run(tmp_path, models=["planted/monolithic"], directions=directions) == 2
    assert "directions.n_positions: found 999" in capsys.readouterr().err


def test_the_modular_model_has_a_direction_per_category_and_other_settings_work(tmp_path, monkeypatch):
    """Several positions, the published contrast and ablation, and a file of text."""
    monkeypatch.setattr(direction_stage, "figures", lambda drawn: {})
    text = tmp_path / "text.txt"
    text.write_text("please write a poem about the garden\n\ntell me a story about a trip\n")
    directions = {
        **SMALL["directions"],
        "text_file": str(text),
        "n_positions": 3,
        "contrast": "dataset_label",
        "ablate_to": "zero",
        "steer_at": "all",
        "controls": 0,
        "test_prompts": 10,
        "coefficients": [1],
        "contrasts": [],
    }
    assert run(tmp_path, models=["planted/modular"], directions=directions) == 0
    found = load(tmp_path, "planted/modular")
    said = StatementFile.load(ResultPaths(tmp_path / "results").directions("planted/modular") / "statement.json")
    assert said.commit_site == "residuals_2"
    assert said.statement.answer == "one per category"
    assert said.statement.layer == 1
    assert said.statement.mean.high < 0.3
    assert found.directions.positions == (-3, -2, -1)
    assert found.conditions["ablation"].text_cross_entropy.n == 2
    assert found.conditions["ablation"].text_cross_entropy.value > 0
    assert {each.ablate_to for each in found.selection.candidates} == {"zero"}
    assert "published ablation" not in found.conditions
    assert found.selection.fallback is not None, "to zero, none passes the filters here, and that is said"
    assert all(point.random_refused == () for curve in found.doses.curves for point in curve.points)
    stored = torch.load(
        ResultPaths(tmp_path / "results").directions("planted/modular") / "mean_diffs.pt", weights_only=True
    )
    assert stored.shape == (3, 4, 64)


def test_published_directions_are_looked_at_without_a_model(directed, tmp_path, capsys):
    folder = ResultPaths(directed / "results").directions("planted/monolithic")
    assert directions_main(["--inspect", str(folder), "--result-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "direction.pt is mean_diffs[pos, layer] (cosine 1.000000)" in shown
    assert (tmp_path / "visualizations" / "planted__monolithic_directions_inspection.png").stat().st_size > 10_000
    assert directions_main(["--inspect", str(tmp_path / "nowhere")]) == 2
    assert "does not exist; give a folder with mean_diffs.pt" in capsys.readouterr().err


def test_a_dry_run_shows_the_stage_and_the_main_job_leaves_it_out(directed, tmp_path, capsys):
    assert run(directed, "--dry-run", models=["planted/monolithic"]) == 0
    shown = capsys.readouterr().out
    assert any(line.split()[0] == "directions" and "up to date" in line for line in shown.splitlines() if line.strip())
    manifest = json.loads(ResultPaths(directed / "results").manifest.read_text())
    assert "directions" in {record["stage"] for record in manifest["stages"]}
