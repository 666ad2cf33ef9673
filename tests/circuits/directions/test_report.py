"""Directions in the report: what summary and page say of them, also of none, and that hostile text stays text."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_page import HOSTILE, Page, texts
from synthetic_results import MODULAR, MONOLITHIC, UNDETERMINED, World, comparison, write_results

from circuits.directions.agreement import compare_with_circuits
from circuits.directions.report import ConditionLine, ContrastLine, DirectionFindings, findings_of
from circuits.directions.verdict import Answer, DirectionStatement
from circuits.page import html_page
from circuits.report import build_report
from circuits.summary import WIDTH, summary_text
from refusal.artefacts import ResultPaths
from refusal.directions.schemas import Chosen
from refusal.measures import share
from refusal.schemas import Measure, Report


def measure(value: float) -> Measure:
    return Measure(value=value, low=value - 0.1, high=value + 0.1, n=64, method="bootstrap", reason=None)


def statement(answer: Answer) -> DirectionStatement:
    return DirectionStatement(
        answer=answer, reason="at residuals_1 they do", layer=1, evidence="transfer", mean=measure(0.9), groups=None
    )


def findings(world: World, answer: Answer, notice: str = "a notice") -> DirectionFindings:
    said = statement(answer)
    names = ("baseline", "ablation", "addition")
    return DirectionFindings(
        reason=None,
        chosen=Chosen(
            position=-1, layer=1, site="residuals_1", norm=9.0, ablate_to="complied", steer_at="all", fallback=None
        ),
        conditions=tuple(
            ConditionLine(
                name=name,
                intervention=f"what is done for {name}",
                refused=share(60 - 30 * index, 60),
                complied=share(25 * index, 50),
                perplexity=measure(1.5),
            )
            for index, name in enumerate(names)
        ),
        contrasts=(ContrastLine(positive="negative", negative="neutral", cosine=measure(0.25), ceiling=0.9, p=0.0123),),
        statement=said,
        agreement=compare_with_circuits(said, (), (), comparison(world)),
        notices=(notice,),
        files=("directions/m/summary.txt", "visualizations/a b_directions_depth.png"),
    )


def report_with(folder: Path, world: World, found: DirectionFindings) -> tuple[ResultPaths, Report]:
    paths = write_results(ResultPaths(folder), world)
    report = build_report(paths, [world.model], {"seed": 0})
    assert report.directions == {}
    return paths, report.model_copy(update={"directions": {world.model: found.model_dump(mode="json")}})


def test_summary_and_page_say_what_directions_do_and_whether_circuits_agree(tmp_path):
    paths, report = report_with(tmp_path, MONOLITHIC, findings(MONOLITHIC, Answer.ONE))
    text = " ".join(summary_text(report, []).split())
    assert "direction residuals_1, position -1: ablated at every place it leaves 0.50 [0.38, 0.62] (n 60)" in text
    assert "one direction: at residuals_1 they do. Directions and circuits agree." in text
    assert max(map(len, summary_text(report, []).splitlines())) <= WIDTH
    page = Page(html_page(report, texts(paths, report)))
    for words in ("Refusal directions", "what is done for addition", "Cosine with negative - neutral: 0.25", "0.012"):
        assert words in page.words
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert "visualizations/a%20b_directions_depth.png" in links


def test_disagreement_is_said_and_nothing_is_said_where_one_side_is_silent(tmp_path):
    assert "DISAGREE" in findings(MODULAR, Answer.ONE).beside()
    assert "agree." in findings(MODULAR, Answer.PER_CATEGORY).beside()
    assert "one of them says nothing" in findings(UNDETERMINED, Answer.ONE).beside()
    assert "one of them says nothing" in findings(MODULAR, Answer.CANNOT_TELL).beside()


def test_a_model_without_a_direction_says_why(tmp_path):
    none = findings(MONOLITHIC, Answer.CANNOT_TELL).model_copy(
        update={"reason": "it never refuses", "chosen": None, "conditions": (), "contrasts": (), "agreement": None}
    )
    paths, report = report_with(tmp_path, MONOLITHIC, none)
    assert "direction none: it never refuses" in " ".join(summary_text(report, []).split())
    assert "None: it never refuses." in Page(html_page(report, texts(paths, report))).words
    assert findings_of(report)[MONOLITHIC.model].chosen is None


@pytest.mark.parametrize("where", ["notice", "reason"])
def test_hostile_text_of_directions_is_inert(tmp_path, where):
    found = findings(MONOLITHIC, Answer.ONE, HOSTILE if where == "notice" else "x")
    if where == "reason":
        found = found.model_copy(update={"reason": HOSTILE, "chosen": None})
    paths, report = report_with(tmp_path, MONOLITHIC, found)
    page = Page(html_page(report, texts(paths, report)))
    assert "alert(1)" in page.words
    assert not any(tag == "img" for tag, _ in page.tags)
