"""The whole study through the entry points, on planted models: verdicts, resuming, bad input, no refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from circuits import sae_quality
from circuits.job import inference_main, main
from circuits.study import Study
from refusal.artefacts import ResultPaths
from refusal.prompts import embedded
from refusal.schemas import CircuitFile, Comparison, RefusalLabels

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "dataset_dir": "embedded",
    "num_samples_per_category": 40,
    "max_new_tokens": 12,
    "sae": {"seeds": [0, 1], "steps": 600},
    "analysis": {"bootstrap": 400, "permutations": 100},
}


def write_config(folder: Path, **keys: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "result_dir": str(folder / "results"), **keys}))
    return path


def run(folder: Path, *flags: str, **keys: object) -> int:
    return main(["--config", str(write_config(folder, **keys)), *flags])


def comparison(folder: Path, model: str) -> Comparison:
    return Comparison.load(ResultPaths(folder / "results").comparison(model))


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Return a folder in which the whole study of the partial and the modular model was run."""
    folder = tmp_path_factory.mktemp("study")
    assert run(folder, models=["planted/partial", "planted/modular"]) == 0
    return folder


def test_the_partial_model_reads_partially_modular_with_its_groups(study):
    found = comparison(study, "planted/partial")
    truth = json.loads((embedded.model_path("planted/partial") / "planted.json").read_text())
    assert found.verdict == truth["expected_verdict"] == "PARTIALLY MODULAR"
    assert {frozenset(group) for group in found.groups} == {frozenset(group) for group in truth["groups"]}
    low, high = found.average_similarity_ci
    assert low < found.average_similarity < high
    # the share of category pairs in one group
    assert found.average_similarity == pytest.approx(58 / 90, abs=0.12)


def test_the_modular_model_reads_modular(study):
    found = comparison(study, "planted/modular")
    assert found.verdict == "MODULAR"
    assert found.average_similarity < 0.3
    assert found.commit_site is not None


def test_transfer_and_similarity_hold_both_orders_and_groups_are_a_partition(study):
    found = comparison(study, "planted/partial")
    for matrix in (found.transfer, found.similarity):
        assert set(matrix) == set(found.categories)
        assert all(set(row) == set(found.categories) for row in matrix.values())
    assert all(found.similarity[a][b] == pytest.approx(found.similarity[b][a]) for a in matrix for b in matrix)
    assert all(found.similarity[a][a] == 1 for a in matrix)
    assert sorted(category for group in found.groups for category in group) == sorted(found.categories)


def test_every_artefact_of_the_contract_is_there(study):
    paths = ResultPaths(study / "results")
    for model in ("planted/partial", "planted/modular"):
        for path in (
            paths.activations(model) / "index.json",
            paths.refusal_labels(model),
            paths.model_outputs(model),
            paths.evaluation(model),
            paths.similarity_heatmap(model),
            paths.depth_profile(model),
            paths.circuit_plot(model, "violence"),
            paths.circuit(model, "self-harm"),
        ):
            assert path.stat().st_size > 0
        for site in ("residuals_0", "residuals_3"):
            for name in ("cfg.json", "sae_weights.safetensors", "metrics.json", f"{site}_training_history.json"):
                assert (paths.saes(model) / site / name).stat().st_size > 0
    for path in (paths.report_json, paths.summary, paths.html, paths.manifest):
        assert path.stat().st_size > 0


def test_an_sae_says_where_other_libraries_find_its_activations(study):
    folder = ResultPaths(study / "results").saes("planted/partial") / "residuals_3"
    metadata = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))["metadata"]
    assert metadata["hook_name"] == "blocks.3.hook_resid_post"
    assert metadata["hf_hook_name"] == "model.layers.3"
    assert metadata["context_size"] > 5


def test_a_circuit_has_nodes_edges_and_a_small_completeness_residual(study):
    circuit = CircuitFile.load(ResultPaths(study / "results").circuit("planted/partial", "violence"))
    assert any(node.latent is not None for node in circuit.nodes)
    assert any(node.latent is None for node in circuit.nodes)
    assert circuit.edges
    # early sites bend the path most: ten midpoints leave up to a fifth there, next to nothing at the last site
    assert all(residual < 0.25 for residual in circuit.completeness_residual.values())
    assert circuit.completeness_residual["residuals_3"] < 0.05
    for curve in circuit.curves:
        assert curve.size[0] <= curve.chosen_size <= curve.size[-1], "interpolated between the sizes that were tried"


def test_behaviour_differs_from_the_files(study):
    labels = RefusalLabels.load(ResultPaths(study / "results").refusal_labels("planted/partial"))
    safe = [label for label in labels.prompts if label.dataset_label == "safe"]
    assert 0 < sum(label.behaviour == "refused" for label in safe) < len(safe) / 3
    assert not any(label.behaviour == "cannot_tell" for label in labels.prompts)


def test_running_again_changes_no_file(study, capsys):
    def stamps():
        files = (path for path in (study / "results").rglob("*") if path.is_file() and path.name != "run_manifest.json")
        return {str(path): path.stat().st_mtime_ns for path in files}

    before = stamps()
    assert run(study, models=["planted/partial", "planted/modular"]) == 0
    assert stamps() == before
    assert "report.html" in capsys.readouterr().out


def test_a_dry_run_shows_what_is_up_to_date_and_writes_nothing(study, tmp_path, capsys):
    assert run(study, "--dry-run", models=["planted/partial", "planted/modular"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("up to date") == 9
    assert run(study, "--dry-run", "--set", "analysis.bootstrap=500", models=["planted/partial"]) == 0
    assert "to do: analysis changed" in capsys.readouterr().out
    assert run(tmp_path, "--dry-run", models=["planted/partial"]) == 0
    assert not (tmp_path / "results").exists()


def test_saes_that_cannot_carry_a_circuit_are_noticed_and_take_away_only_a_verdict_that_rests_on_them(
    study, tmp_path, monkeypatch
):
    shutil.copytree(study / "results", tmp_path / "results")
    monkeypatch.setattr(sae_quality, "MAX_FVU", 0.0)
    assert run(tmp_path, "--force", "compare", models=["planted/partial"]) == 0
    before, found = comparison(study, "planted/partial"), comparison(tmp_path, "planted/partial")
    assert found.decisive_site.startswith("neurons")
    assert (found.verdict, found.reason) == (before.verdict, before.reason), "neurons have no SAE"
    (notice,) = [text for text in found.notices if "residuals_1" in text]
    assert notice.startswith("planted/partial: the SAEs at residuals_1 cannot carry a circuit: held-out FVU 0.")
    assert "cannot carry a circuit" in (tmp_path / "results" / "circuit_analysis_summary.txt").read_text()
    assert "cannot carry a circuit" in (tmp_path / "results" / "report.html").read_text()

    streams = {"residuals_0", "residuals_1"}
    only_streams = property(lambda self: [each for each in self.profiles if each.site.name in streams])
    monkeypatch.setattr(Study, "deciding", only_streams)
    only_compare = ["inference", "saes", "circuits", "compare"]
    assert run(tmp_path, "--force", "compare", models=["planted/partial"], stages=only_compare) == 0
    found = comparison(tmp_path, "planted/partial")
    assert found.verdict == "UNDETERMINED"
    assert found.reason.startswith("The verdict would rest on the SAEs at residuals_")
    assert found.average_similarity is not None, "what was measured stays"


def test_a_stage_whose_input_is_missing_says_what_to_run_first(tmp_path, capsys):
    assert run(tmp_path, models=["planted/partial"], stages=["circuits"]) == 2
    assert "first run: python src/run_inference.py --config FILE" in capsys.readouterr().err
    assert inference_main(["--config", str(write_config(tmp_path, models=["planted/partial"]))]) == 0
    assert "--train-saes" in capsys.readouterr().out
    assert run(tmp_path, models=["planted/partial"], stages=["circuits"]) == 2
    assert "--train-saes" in capsys.readouterr().err


def test_all_positions_asked_of_readouts_is_told_and_a_store_of_all_serves_both(tmp_path, capsys):
    small = {
        "models": ["planted/partial"],
        "num_samples_per_category": 10,
        "activation_layers": ["residuals_1"],
        "stages": ["inference", "saes"],
    }
    sae = {"seeds": [0], "steps": 60}
    assert run(tmp_path, **small, sae={**sae, "positions": "readout"}) == 0
    artefacts = ("activations", "saes", "refusal_labels")
    files = [path for name in artefacts for path in (tmp_path / "results" / name).rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    capsys.readouterr()
    assert run(tmp_path, "--stages", "saes", **small, sae={**sae, "positions": "all"}) == 2
    said = capsys.readouterr().err
    assert "sae.positions is all, and the activations hold the readout position only" in said
    assert "must say sae.positions: all too" in said
    assert "first run: python src/run_inference.py" in said
    assert {path: path.read_bytes() for path in before} == before
    assert run(tmp_path, **small, sae={**sae, "positions": "all"}) == 0
    captured = sorted((tmp_path / "results" / "activations").rglob("*.safetensors"))
    stamps = [path.stat().st_mtime_ns for path in captured]
    assert run(tmp_path, **small, sae={**sae, "positions": "readout"}) == 0
    assert [path.stat().st_mtime_ns for path in captured] == stamps


def test_one_category_is_undetermined_and_no_error(tmp_path):
    assert run(tmp_path, models=["planted/partial"], categories=["violence"]) == 0
    found = comparison(tmp_path, "planted/partial")
    assert found.verdict == "UNDETERMINED"
    assert "Only one category, violence" in found.reason


def test_a_model_that_never_refuses_is_undetermined(tmp_path, llama_folder):
    assert run(tmp_path, models=[str(llama_folder)], stages=["inference", "saes", "circuits", "compare", "report"]) == 0
    found = comparison(tmp_path, str(llama_folder))
    assert found.verdict == "UNDETERMINED"
    assert found.average_similarity is None


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"dataset_dir": "/no/such/folder"}, "/no/such/folder"),
        ({"categories": ["violense"]}, "did you mean violence"),
        ({"activation_layers": ["residuals_9"]}, "no site 'residuals_9'; it has residuals_0 to residuals_3"),
        ({"models": ["planted/modularr"]}, "did you mean planted/modular?"),
        ({"models": ["/no/such/model"]}, "no such folder"),
        ({"sae": {"k": 3, "d_sae": 2}, "stages": ["inference", "saes"]}, "k"),
    ],
)
def test_bad_input_is_one_message_and_status_two(tmp_path, capsys, keys, expected):
    assert run(tmp_path, **{"models": ["planted/partial"], "num_samples_per_category": 4, **keys}) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message


def test_an_unwritable_result_folder_is_told_before_anything_runs(tmp_path, capsys):
    (tmp_path / "results").write_text("a file")
    assert run(tmp_path, models=["planted/partial"]) == 2
    assert "cannot be written" in capsys.readouterr().err or "result_dir" in capsys.readouterr().err


def test_a_folder_that_another_run_uses_is_refused(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / ".lock").write_text(f"{os.uname().nodename} {os.getpid()}")
    assert run(tmp_path, models=["planted/partial"]) == 2
    assert "in use by another run" in capsys.readouterr().err


def test_a_damaged_artefact_is_made_anew(study, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(study / "results", copy)
    damaged = copy / "circuits" / "planted__partial_comparison.json"
    before = damaged.read_bytes()
    damaged.write_bytes(before[:-100])
    assert run(tmp_path, models=["planted/partial", "planted/modular"]) == 0
    assert damaged.read_bytes() == before
