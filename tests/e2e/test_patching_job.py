"""Activation patching through its command: results, resuming, bad input, and the report."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from synthetic_results import MONOLITHIC, circuit, write_results

from circuits.job import directions_main, patching_main
from circuits.page import html_page
from circuits.page_data import Texts
from circuits.patching.figures import FIGURES, figure_paths
from circuits.patching.page import PatchingPart, heat_style, patching_page
from circuits.patching.stage import compared_models, report_sections
from circuits.report import build_report
from refusal.artefacts import ResultPaths
from refusal.patching.records import PatchingComparison, PatchingResults
from refusal.sae.base import Provenance
from refusal.sae.topk import TopKSae
from refusal.schemas import CircuitNode, RefusalLabels
from refusal.sites import Site
from refusal.store import ActivationStore

MODEL, OTHER = "planted/monolithic", "planted/modular"
SMALL = {
    "dataset_dir": "embedded",
    "num_samples_per_category": 24,
    "categories": ["privacy", "violence", "hate"],
    "max_new_tokens": 10,
    "models": [MODEL, OTHER],
    "analysis": {"bootstrap": 100},
    "patching": {
        **{"n_pairs": 12, "validation_pairs": 6, "ig_steps": 2, "random_sets": 1, "strengths": [0, 1], "latex": True},
        **{"compare": [[MODEL, OTHER]], "kinds": ["residuals", "mlp", "heads"]},
    },
}


def write_config(folder: Path, **keys: object) -> Path:
    content = {**SMALL, "result_dir": str(folder / "results"), **keys}
    content["patching"] = {**SMALL["patching"], **keys.get("patching", {})}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(folder: Path, *flags: str, **keys: object) -> int:
    return patching_main(["--config", str(write_config(folder, **keys)), *flags])


def results(folder: Path, model: str = MODEL) -> PatchingResults:
    return PatchingResults.load(ResultPaths(folder / "results").patching(model) / "patching.json")


def stamps(folder: Path) -> dict[str, int]:
    files = (path for path in (folder / "results").rglob("*") if path.is_file() and path.name != "run_manifest.json")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return a folder in which two models were patched and compared."""
    folder = tmp_path_factory.mktemp("patching")
    assert run(folder) == 0
    return folder


def test_the_results_say_what_was_measured_and_on_what(study):
    found = results(study)
    assert found.pairs.n == 12
    assert found.pairs.n_validation == 6
    assert found.pairs.m_clean.low > 3
    assert found.pairs.m_corrupted.high < -3
    assert {(each.kind, each.method) for each in found.maps} >= {
        ("residuals", "exact"),
        ("heads", "exact"),
        ("heads", "integrated"),
        ("writers", "direct"),
    }
    assert {"mlp_1", "mlp_2"} <= set(found.critical_layers["mlp"])
    assert found.critical_heads
    assert all(name.startswith("heads_0.") for name in found.critical_heads)
    assert all(each.refusals.refusal.n for each in found.validation)
    assert {each.what for each in found.clamping} == {"direction", "random directions"}
    assert any("there are no circuits" in notice for notice in found.notices)


def test_every_unit_has_an_interval_n_and_a_corrected_p(study):
    for each in results(study).maps:
        for unit in each.units:
            if unit.effect.value is not None:
                assert unit.effect.low <= unit.effect.value <= unit.effect.high
                assert unit.effect.n > 0
                assert unit.p <= unit.p_corrected


def test_tables_pictures_and_pages_are_there(study):
    paths = ResultPaths(study / "results")
    folder = paths.patching(MODEL)
    with (folder / "tables" / "heads.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    exact = [row for row in rows if (row["method"], row["mode"], row["place"]) == ("exact", "noise", "all")]
    assert len(exact) == 16
    assert all(float(row["effect_low"]) <= float(row["effect"]) <= float(row["effect_high"]) for row in exact)
    for table in (folder / "tables").glob("*.csv"):
        header = table.read_text().splitlines()[0].split(",")
        assert len(set(header)) == len(header), f"{table.name}: a column stands twice"
    latex = (folder / "tables" / "validation.tex").read_text()
    assert latex.count("{") == latex.count("}")
    assert r"\midrule" in latex
    for path in figure_paths(paths, MODEL, "png"):
        assert path.read_bytes().startswith(b"\x89PNG"), path
    assert len(FIGURES) == 6
    page = (folder / "report.html").read_text()
    assert "heads_0." in page
    assert "<script" not in page
    report = (folder / "report.md").read_text()
    assert "## Critical units" in report
    assert all(line.count("|") >= 3 for line in report.splitlines() if line.startswith("|"))


def test_two_models_are_compared_on_the_same_pairs(study):
    folder = ResultPaths(study / "results").patching_comparison(MODEL, OTHER)
    found = PatchingComparison.load(folder / "comparison.json")
    assert found.n_prompts_in_common == 72
    assert found.same_behaviour.value > 0.9
    assert found.n_pairs >= 6
    assert {(each.kind, each.mode) for each in found.maps} == {
        (kind, mode) for kind in ("residuals", "mlp", "heads") for mode in ("denoise", "noise")
    }
    assert [each.site for each in found.directions] == [f"residuals_{layer}" for layer in range(4)]
    for name in ("layers.png", "heads.png", "directions.png", "report.html", "tables/maps.csv"):
        assert (folder / name).stat().st_size > 0


def test_running_again_changes_nothing_and_a_changed_key_redoes_only_what_it_decides(study, capsys):
    before = stamps(study)
    assert run(study) == 0
    assert stamps(study) == before
    assert "report.html" in capsys.readouterr().out
    folder = study.parent / "changed"
    shutil.copytree(study, folder)
    old = stamps(folder)
    assert run(folder, models=[MODEL], patching={"strengths": [0, 1, 2], "compare": []}) == 0
    now = stamps(folder)
    changed = {name for name in now if now[name] != old.get(name)}
    assert any(name.endswith("clamp_direction.json") for name in changed)
    assert not any("/maps/" in name or name.endswith("validation_heads.json") for name in changed)


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_results(study, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(study, folder)
    paths = ResultPaths(folder / "results")
    wanted = results(folder)
    # what a kill after the maps and one part of the answers leaves
    paths.stage_record("patching", MODEL).unlink()
    (paths.patching(MODEL) / "patching.json").unlink()
    (paths.patching(MODEL) / "parts" / "clamp_direction.json").unlink()
    (paths.patching(MODEL) / "maps" / "heads_noise_counterfactual_exact.safetensors").write_bytes(b"half")
    assert run(folder, models=[MODEL], patching={"compare": []}) == 0
    assert results(folder) == wanted


def test_the_direction_that_the_directions_stage_chose_is_taken_and_a_changed_one_is_noticed(study, tmp_path, capsys):
    folder, alone = tmp_path / "directed", {"models": [MODEL], "patching": {"compare": []}}
    shutil.copytree(study, folder)
    few = {"directions": {"coefficients": [1], "controls": 0, "test_prompts": 4, "contrasts": [], "steer_at": "all"}}
    few["analysis"] = {"bootstrap": 100, "permutations": 0}
    assert directions_main(["--config", str(write_config(folder, **alone, **few))]) == 0
    before, paths = stamps(folder), ResultPaths(folder / "results")
    assert run(folder, **alone) == 0
    chosen = json.loads((paths.directions(MODEL) / "direction_metadata.json").read_text())
    source = f"direction.pt (position {chosen['pos']}, layer {chosen['layer']} as published)"
    site, found = f"residuals_{chosen['layer'] - 1}", results(folder)
    (notice,) = [each for each in found.notices if "refusal direction is" in each]
    assert f"directions/planted__monolithic/{source}" in notice
    assert float(notice.split(" is ")[-1]) > 0.5, "cosine with the difference in means of the pairs"
    assert found.direction_site == site
    until = [w for w in found.writes if w.head is None and w.layer < chosen["layer"]]
    assert sum(w.to_direction.value for w in until) == pytest.approx(1, abs=1e-4)
    clamped = next(each for each in found.clamping if each.what == "direction")
    assert clamped.site == site
    assert source in clamped.source
    assert (clamped.doses[1].suppress.refusal.value, clamped.doses[2].force.refusal.value) == (0, 1)
    now = stamps(folder)
    assert all(now[name] == before[name] for name in before if "/maps/" in name or name.endswith("_heads.json"))
    assert run(folder, **alone) == 0
    assert stamps(folder) == now
    capsys.readouterr()
    (paths.directions(MODEL) / "direction_metadata.json").write_text(json.dumps({**chosen, "layer": 1}))
    assert run(folder, "--dry-run", **alone) == 0
    assert "direction_metadata.json changed" in capsys.readouterr().out
    shutil.rmtree(paths.directions(MODEL))
    assert run(folder, **alone) == 0
    assert results(folder) == results(study), "without a direction the difference in means serves"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"patching": {"pairs": "none.csv"}}, "patching.pairs: none.csv: cannot be read"),
        ({"patching": {"pairs": "pairs.txt"}}, "allowed are data, embedded, or the path of a .csv or .json file"),
        ({"patching": {"compare": [[MODEL, "planted/moduler"]]}}, "did you mean planted/modular?"),
        (
            {"patching": {"direction": "nowhere"}},
            "patching.direction: nowhere: does not exist; give a folder with direction.pt and",
        ),
        ({"patching": {"n_pair": 3}}, "did you mean n_pairs?"),
        ({"patching": {"modes": ["denoise"], "ablations": ["zero"]}}, "zeros restore nothing"),
    ],
)
def test_a_wrong_key_stops_before_anything_runs(tmp_path, capsys, keys, said):
    assert run(tmp_path, **keys) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "results").exists()


def test_too_few_pairs_are_told_with_reasons_and_what_is_done_is_kept(study, tmp_path, capsys):
    folder = tmp_path / "few"
    shutil.copytree(study, folder)
    pairs = [
        {"clean": f"please plan the fight {word}", "corrupted": f"please rank the fight {word}"} for word in "abcdefg"
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    assert (
        run(folder, models=[MODEL], patching={"pairs": str(tmp_path / "pairs.json"), "min_gap": 500, "compare": []})
        == 2
    )
    error = capsys.readouterr().err
    assert "gives 0 usable pairs, 7 were left out (7: m of the clean prompt is less than 500 logits above" in error
    assert "at least 6 are needed" in error
    assert "Traceback" not in error
    assert results(folder) == results(study), "what was there before stays"


def write_circuits(paths: ResultPaths, categories: list[str]) -> None:
    """Write an SAE with five latents, the first along the refusal direction, and circuits that hold three of them."""
    store = ActivationStore(paths.activations(MODEL))
    labels = {label.id: label.behaviour for label in RefusalLabels.load(paths.refusal_labels(MODEL)).prompts}
    site = Site.parse("residuals_1")
    acts = store.readout(site, store.prompt_ids).float()
    is_refused = torch.tensor([labels[each] == "refused" for each in store.prompt_ids])
    direction = acts[is_refused].mean(0) - acts[~is_refused].mean(0)
    rows = torch.randn(5, acts.shape[1], generator=torch.Generator().manual_seed(0))
    rows[0] = direction
    rows = rows / rows.norm(dim=1, keepdim=True)
    bias = -0.5 * (rows @ (acts[is_refused].mean(0) + acts[~is_refused].mean(0)))
    tensors = {"W_enc": rows.T.contiguous(), "b_enc": bias, "W_dec": rows, "b_dec": torch.zeros(acts.shape[1])}
    TopKSae.build(tensors, {"k": 5}, Provenance()).save(paths.sae(MODEL, site))
    node = {"interval": (0.0, 1.0), "minimality": None, "minimality_ci": (None, None), "stability": 1.0}
    node |= {"frequency_refused": 1.0, "frequency_complied": 0.0, "top_prompts": ()}
    world = replace(MONOLITHIC, categories=tuple(categories))
    for category in categories:
        nodes = tuple(
            CircuitNode(site=str(site), latent=number, attribution=5.0 - number, **node) for number in range(3)
        )
        circuit(world, category).model_copy(update={"nodes": nodes, "edges": ()}).save(paths.circuit(MODEL, category))


def test_latents_of_circuits_are_mapped_with_their_top_prompts_and_clamped(study, tmp_path):
    folder = tmp_path / "latents"
    shutil.copytree(study, folder)
    paths = ResultPaths(folder / "results")
    write_circuits(paths, ["privacy", "violence"])
    maps = stamps(folder)
    assert run(folder, models=[MODEL], patching={"compare": []}) == 0
    found = results(folder)
    assert [each.latent for each in found.latents] == [0, 1, 2], "largest attribution first"
    decisive, other, _ = found.latents
    assert decisive.circuits == ("privacy", "violence")
    assert decisive.denoise.effect.value > 0.4
    assert decisive.noise.is_critical
    assert abs(other.denoise.effect.value) < 0.3
    assert decisive.n_refused == len(decisive.top_prompts) == 10
    activations = [prompt.activation for prompt in decisive.top_prompts]
    assert activations == sorted(activations, reverse=True)
    assert decisive.top_prompts[0].category in {"privacy", "violence", "hate"}
    clamped = next(each for each in found.clamping if each.what == "latents")
    assert clamped.latents == (0, 1, 2)
    assert clamped.doses[0].suppress.refusal.value == 1
    assert clamped.doses[1].suppress.refusal.value < 0.5, "strength 0"
    unchanged = stamps(folder)
    assert all(unchanged[name] == maps[name] for name in maps if "planted__monolithic/maps/" in name)


def test_the_report_shows_what_patching_found(study, tmp_path):
    paths = write_results(ResultPaths(tmp_path), MONOLITHIC)
    shutil.copytree(ResultPaths(study / "results").patching(MODEL), paths.patching(MODEL))
    report = build_report(paths, [MODEL], {})
    texts = {MODEL: Texts.of(None, None)}
    shutil.copytree(study / "results" / "patching" / "comparisons", tmp_path / "patching" / "comparisons")
    part = PatchingPart(report_sections(paths, [MODEL]), compared_models(paths, [MODEL, OTHER]))
    page = html_page(report, texts, patching=part)
    assert 'href="patching/comparisons/planted__monolithic/planted__modular/report.html"' in page
    assert "Where refusal is decided" in page
    assert "Forcing and suppressing refusal" in page
    assert page.count("<script") == 2
    assert "Where refusal is decided" not in html_page(report, texts)


def test_names_from_data_cannot_break_the_page(study):
    found = results(study)
    nasty = found.model_copy(update={"model": "<script>alert(1)</script>", "notices": ("a\n| b <img src=x>",)})
    page = patching_page(nasty, {})
    assert "<script>" not in page
    assert "<img" not in page
    assert heat_style(0.7).endswith("color:#fff")
