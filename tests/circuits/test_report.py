"""Summary, report and page: everything is there, nothing that comes from data is markup, nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_page import HOSTILE, Page, texts
from synthetic_results import (
    MODULAR,
    MONOLITHIC,
    PARTIAL,
    UNDETERMINED,
    WORLDS,
    World,
    comparison,
    one_category,
    write_results,
)

from circuits.page import html_page
from circuits.page_data import STEPS, PageData, Texts, matrices, page_data, script_json
from circuits.report import build_report, write_reports
from circuits.summary import WIDTH, summary_text
from refusal.artefacts import ResultPaths, write_text
from refusal.config import ReportConfig
from refusal.errors import ArtefactError
from refusal.schemas import Report
from refusal.wording import one_line, shorten

SMALL = replace(MONOLITHIC, model="tiny/model", categories=("hate", "self-harm"), groups=(("hate", "self-harm"),))


def results(folder: Path, *worlds: World) -> tuple[ResultPaths, Report]:
    paths = write_results(ResultPaths(folder), *worlds)
    return paths, build_report(paths, [world.model for world in worlds], {"seed": 0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResultPaths, Report]:
    return results(tmp_path_factory.mktemp("results"), *WORLDS)


@pytest.fixture(scope="module")
def html(folder: tuple[ResultPaths, Report]) -> str:
    paths, report = folder
    return html_page(report, texts(paths, report))


# Writing -------------------------------------------------------------------------------------------------------------


def test_everything_is_written_and_named(tmp_path: Path) -> None:
    paths = write_results(ResultPaths(tmp_path), SMALL)
    written = write_reports(paths, [SMALL.model], ReportConfig(), {"seed": 0}, "png")
    assert written[0] == paths.summary
    assert set(written) == {
        paths.summary,
        paths.report_json,
        paths.html,
        paths.similarity_heatmap(SMALL.model),
        paths.depth_profile(SMALL.model),
        *(paths.circuit_plot(SMALL.model, category) for category in SMALL.categories),
    }
    assert all(path.stat().st_size > 300 for path in written)
    assert "report.html" in paths.summary.read_text()
    assert not list(tmp_path.rglob("*.partial.*"))


def test_without_a_page_the_summary_does_not_name_one(tmp_path: Path) -> None:
    paths = write_results(ResultPaths(tmp_path), replace(SMALL, n_layers=1))
    written = write_reports(paths, [SMALL.model], ReportConfig(html=False, image_format="svg"), {})
    assert paths.html not in written
    assert not paths.html.exists()
    assert "report.html" not in paths.summary.read_text()
    assert paths.similarity_heatmap(SMALL.model, "svg") in written


def test_report_can_be_read_back(folder: tuple[ResultPaths, Report], tmp_path: Path) -> None:
    _, report = folder
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_a_missing_circuit_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    paths = write_results(ResultPaths(tmp_path), SMALL)
    paths.circuit(SMALL.model, "hate").unlink()
    with pytest.raises(ArtefactError, match=r"hate_circuit.json: not found; make it with: .*run_circuit_analysis"):
        build_report(paths, [SMALL.model], {})


def test_writing_the_report_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = write_results(ResultPaths(tmp_path), replace(SMALL, n_layers=1))
    settings = ReportConfig(image_format="svg")
    first = {path: path.read_bytes() for path in write_reports(paths, [SMALL.model], settings, {"seed": 0})}
    assert {path: path.read_bytes() for path in write_reports(paths, [SMALL.model], settings, {"seed": 0})} == first


# Summary -------------------------------------------------------------------------------------------------------------


def test_summary_of_three_models_fits_one_page(tmp_path: Path) -> None:
    paths = write_results(ResultPaths(tmp_path), MONOLITHIC, PARTIAL, UNDETERMINED)
    report = build_report(paths, [MONOLITHIC.model, PARTIAL.model, UNDETERMINED.model], {})
    lines = summary_text(report, [(f"file_{i}.png", "what it holds") for i in range(4)]).splitlines()
    assert len(lines) <= 75
    assert max(map(len, lines)) <= WIDTH


def test_summary_holds_verdict_reason_and_every_category(folder: tuple[ResultPaths, Report]) -> None:
    _, report = folder
    text = summary_text(report, [])
    flat = " ".join(text.split())
    for world in WORLDS:
        found = report.comparisons[world.model]
        assert f"{world.model}: {world.verdict}" in text
        assert found.reason in flat
    for category in MONOLITHIC.categories:
        assert len(re.findall(rf"^  {category} ", text, re.MULTILINE)) == len(WORLDS)


def test_summary_gives_numbers_with_interval_n_and_seeds(folder: tuple[ResultPaths, Report]) -> None:
    text = " ".join(summary_text(folder[1], []).split())
    mean = f"{folder[1].comparisons[MONOLITHIC.model].average_similarity:.2f}"
    assert f"transfer {mean} [0.92, 0.98] at residuals_1; n = 50 refused prompts a category; SAE seeds {mean}," in text
    assert "groups 2 (stability 0.98): {deception, harassment" in text
    assert "{self-harm, sexual}" in text
    assert "onset residuals_0, shared from residuals_1, commit residuals_3; sharing depth 0.67" in text
    assert "for comparison only" in text


def test_summary_says_what_was_not_measured_and_who_was_left_out(tmp_path: Path) -> None:
    _, report = results(tmp_path, UNDETERMINED)
    text = " ".join(summary_text(report, []).split())
    assert "transfer not measured" in text
    assert "left out: 3 refused prompts" in text
    assert "Notice: not compared: sexual: 3 refused prompts; at least 8 are needed" in text


def test_names_cannot_break_the_lines_of_the_summary(tmp_path: Path) -> None:
    hostile = replace(
        SMALL, categories=("a\nVERDICT: MODULAR\x1b[31m", "b"), groups=(("a\nVERDICT: MODULAR\x1b[31m", "b"),)
    )
    _, report = results(tmp_path, replace(hostile, model="m\r\nx: MODULAR"))
    text = summary_text(report, [])
    assert "\x1b" not in text
    assert not re.search(r"^(VERDICT|x): MODULAR", text, re.MULTILINE)


@given(st.text())
def test_one_line_is_printable_and_has_no_breaks(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert one_line(line) == line
    assert len(shorten(text, 10)) <= 10


# The page ------------------------------------------------------------------------------------------------------------


def test_page_holds_every_model_verdict_reason_and_category(html: str, folder: tuple[ResultPaths, Report]) -> None:
    words = Page(html).words
    for model, found in folder[1].comparisons.items():
        assert model in words
        assert found.verdict in words
        assert found.reason in words
    for category in MONOLITHIC.categories:
        assert words.count(category) >= len(WORLDS)


def test_page_is_well_formed_small_and_complete(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert len(html.encode()) < 2_000_000
    headings = ("How to read this", "What this cannot tell", "Configuration and versions", "Checks", "Circuits")
    assert all(heading in page.words for heading in headings)


def test_page_loads_nothing(html: str) -> None:
    allowed = re.compile(r"#[a-z]+(-\d+)?|data:,")
    for tag, attributes in Page(html).tags:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "background", "poster"), tag
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert allowed.fullmatch(value or ""), value
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_policy_allows_the_pages_own_script_only(html: str) -> None:
    page = Page(html)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_embedded_numbers_are_those_of_the_artefacts(html: str, folder: tuple[ResultPaths, Report]) -> None:
    data = PageData.model_validate_json(Page(html).scripts[0])
    for model in data.models:
        found = folder[1].comparisons[model.name]
        similarity = model.matrices[0]
        for i, a in enumerate(model.categories):
            for j, b in enumerate(model.categories):
                expected = found.similarity.get(a, {}).get(b)
                assert similarity.values[i][j] == (None if expected is None else float(f"{expected:.4g}"))
        assert len(model.circuits) == len(model.categories)
        for circuit in model.circuits:
            file = folder[1].circuits[model.name][circuit.category]
            names = {(circuit.sites[node.s].name, node.l): node.a for node in circuit.nodes}
            for record in file.nodes:
                assert names[record.site, record.latent] == float(f"{record.attribution:.4g}")


def test_undetermined_is_shown_as_not_measured_with_its_reason(tmp_path: Path) -> None:
    paths, report = results(tmp_path, UNDETERMINED)
    html = html_page(report, texts(paths, report))
    words = Page(html).words
    assert "mean transfer not measured" in words
    assert "left out: 3 refused prompts; at least 8 are needed" in words
    assert 'class="card is-undetermined"' in html
    assert not re.search(r"\b(nan|None|null|inf)\b", words.replace("planted/null", ""))


def test_prompts_and_responses_are_data_and_not_visible_text(tmp_path: Path) -> None:
    world = replace(SMALL, outputs={"prompt": "a prompt nobody should stumble on", "response": "nor this"})
    paths, report = results(tmp_path, world)
    page = Page(html_page(report, texts(paths, report)))
    assert "stumble" not in page.words
    assert "stumble" in page.scripts[0]
    assert "nor this" in page.scripts[0]


def test_page_of_a_folder_without_prompts_says_so(tmp_path: Path) -> None:
    paths = write_results(ResultPaths(tmp_path), replace(SMALL, n_layers=1))
    paths.model_outputs(SMALL.model).unlink()
    paths.refusal_labels(SMALL.model).unlink()
    write_reports(paths, [SMALL.model], ReportConfig(image_format="svg"), {})
    assert "and no prompts or responses" in Page(paths.html.read_text()).words


@pytest.mark.parametrize("where", ["model", "category", "prompt", "configuration"])
def test_hostile_text_is_inert_wherever_it_comes_from(where: str, tmp_path: Path) -> None:
    world = replace(SMALL, n_layers=2)
    configuration = {"system_prompt": HOSTILE if where == "configuration" else None}
    if where == "model":
        world = replace(world, model=HOSTILE)
    elif where == "category":
        world = replace(world, categories=(HOSTILE, "b"), groups=((HOSTILE, "b"),))
    elif where == "prompt":
        world = replace(world, outputs={"prompt": HOSTILE, "response": HOSTILE})
    paths = write_results(ResultPaths(tmp_path), world)
    report = build_report(paths, [world.model], configuration)
    page = Page(html_page(report, texts(paths, report)))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert "6170" not in page.words
    raw = page.scripts[0]
    assert not set("<>&\u2028\u2029") & set(raw)
    data = json.loads(raw)
    if where == "prompt":
        assert {text for _, _, text in data["prompts"].values()} == {HOSTILE}
    if where == "category":
        assert HOSTILE in data["models"][0]["categories"]


def test_script_json_survives_lone_surrogates(tmp_path: Path) -> None:
    world = replace(SMALL, n_layers=1, left_out=())
    _, report = results(tmp_path, world)
    data = page_data(report, {world.model: Texts({}, {}, {})}, STEPS[0])
    odd = data.model_copy(update={"prompts": {"id": ("c", "toxic", "\ud800 <b>")}})
    text = script_json(odd)
    assert text.encode("utf-8")
    assert json.loads(text)["prompts"]["id"][2] == "\ud800 <b>"
    write_text(tmp_path / "x.txt", "\ud800")
    assert (tmp_path / "x.txt").read_bytes() == b"?"


def test_a_large_result_is_cut_to_the_size_and_says_how_much_is_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = [
        replace(
            world,
            categories=MONOLITHIC.categories[:2],
            groups=(),
            latents_per_site=8,
            n_layers=2,
            outputs={"prompt": "long " * 300, "response": "very " * 300},
        )
        for world in (MONOLITHIC, MODULAR)
    ]
    paths, report = results(tmp_path, *worlds)
    assert len(html_page(report, texts(paths, report)).encode()) > 120_000
    monkeypatch.setattr("circuits.page.MOST_BYTES", 120_000)
    html = html_page(report, texts(paths, report))
    assert len(html.encode()) <= 120_000
    assert re.search(r"embeds at most \d+ nodes a site and \d+ edges a circuit", Page(html).words)
    assert f"at most {STEPS[0].nodes_a_site} nodes" not in Page(html).words


def test_structure_is_shown_raw_with_its_ceiling_and_their_ratio() -> None:
    found = comparison(MONOLITHIC)
    views = {view.key: view for view in matrices(found, found.categories)}
    ceiling = found.structural_similarity.noise_ceiling["cosine"]
    a, b = found.categories[:2]
    assert views["cosine ceiling"].values[0][1] == pytest.approx((ceiling[a] * ceiling[b]) ** 0.5, rel=1e-3)
    assert views["cosine ceiling"].values[0][0] == pytest.approx(ceiling[a], rel=1e-3)
    assert views["cosine raw"].values[0][1] == pytest.approx(found.structural_similarity.raw["cosine"][a][b], rel=1e-3)
    assert views["transfer"].directed
    assert not views["similarity"].directed


def test_one_category_gives_a_page(tmp_path: Path) -> None:
    paths, report = results(tmp_path, one_category())
    assert "deception" in Page(html_page(report, texts(paths, report))).words


def test_figures_of_the_page_are_drawn_without_an_error(html: str, tmp_path: Path) -> None:
    """In a browser where there is one; elsewhere what the script needs of the page is checked."""
    page = Page(html)
    figures = [a["data-figure"] for _, a in page.tags if "data-figure" in a]
    assert figures == ["heatmap", "depth", "circuit"] * len(WORLDS)
    needed = set(re.findall(r'getElementById\("([\w-]+)"\)', page.scripts[1]))
    assert needed <= {a.get("id") for _, a in page.tags}
    browser = shutil.which("chromium")
    if browser is not None:
        (tmp_path / "report.html").write_text(html, encoding="utf-8")
        options = "headless=new no-sandbox disable-gpu no-first-run disable-sync disable-background-networking"
        options += " disable-component-update enable-logging=stderr virtual-time-budget=2000 dump-dom"
        command = [browser, *(f"--{option}" for option in options.split()), f"--user-data-dir={tmp_path / 'user'}"]
        address = (tmp_path / "report.html").as_uri()
        drawn = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in drawn.stderr
        assert drawn.stdout.count('class="cell"') == 100
        assert drawn.stdout.count('class="node"') == 35
