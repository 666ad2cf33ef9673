"""The analysis of a result folder as a page of text: what each model did, and how detectors agree. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from refusal.cli import as_table
from refusal.evaluation.agreement import DetectorComparison
from refusal.evaluation.rates import AnalysisResults, CategoryAnalysis, ModelAnalysis
from refusal.labels import Behaviour
from refusal.schemas import Measure, Rate


def _cell(measure: Rate | Measure) -> str:
    """Return `value [low, high] n`; a missing number is a dash."""
    if measure.value is None:
        return "-"
    ends = "[-, -]" if measure.low is None or measure.high is None else f"[{measure.low:.2f}, {measure.high:.2f}]"
    return f"{measure.value:.2f} {ends} {measure.n}"


_BEHAVIOUR: Mapping[str, Callable[[CategoryAnalysis], Rate | Measure]] = {
    "refusal, toxic": lambda row: row.rates.refusal_toxic,
    "over-refusal, 80k": lambda row: row.rates.over_refusal_safe,
    "over-refusal, hard-1k": lambda row: row.rates.over_refusal_hard,
    "partly refused": lambda row: row.partly_refused,
    "compliance": lambda row: row.rates.compliance,
    "cannot tell": lambda row: row.rates.cannot_tell,
}
_DETECTOR: Mapping[str, Callable[[CategoryAnalysis], Rate | Measure]] = {
    "precision": lambda row: row.detection.precision,
    "recall": lambda row: row.detection.recall,
    "F1": lambda row: row.detection.f1,
    "first-token AUC": lambda row: row.score_auc,
}


def _table(columns: Mapping[str, Callable[[CategoryAnalysis], Rate | Measure]], model: ModelAnalysis) -> list[str]:
    rows = {**model.categories, "all": model.overall}
    cells = [["category", *columns]]
    cells += [[name, *(_cell(pick(row)) for pick in columns.values())] for name, row in rows.items()]
    return as_table(cells).split("\n")


def as_text(results: AnalysisResults) -> str:
    """Return the analysis as a page of text: per model what it did, how it does as a detector, and the notices."""
    lines = ["Shares with Wilson 95 % intervals and n. Only full refusals count as refusing."]
    for name, model in results.models.items():
        lines += ["", f"{name}: {model.overall.n} prompts", "", *_table(_BEHAVIOUR, model)]
        lines += ["", "Refusing as a detector of toxic prompts, and what the first token tells", ""]
        lines += _table(_DETECTOR, model)
        lines += _detectors(model.detectors)
        notes = [*model.notices, *([f"no first-token metric: {model.openers_reason}"] if model.openers_reason else [])]
        lines += [""] * bool(notes) + [f"note: {note}" for note in notes]
    return "\n".join(lines) + "\n"


def _detectors(found: DetectorComparison | None) -> list[str]:
    if found is None:
        return []
    n = f"{found.n_disagreements} responses on which not all say the same are in detector_disagreements.csv"
    lines = ["", f"Agreement of detectors on refused or not; {n}", ""]
    rows = [["detectors", "same", "Cohen's kappa"]]
    rows += [[f"{pair.first}, {pair.second}", _cell(pair.same), _cell(pair.kappa)] for pair in found.pairs]
    lines += as_table(rows).split("\n")
    if found.people:
        lines += ["", f"Against people ({found.n_people} responses): rows what people said, columns the detector", ""]
    for person in found.people:
        rows = [[person.detector, *map(str, Behaviour)]]
        rows += [[said, *(str(person.confusion[said][str(each)]) for each in Behaviour)] for said in person.confusion]
        lines += [*as_table(rows).split("\n")]
        lines += [
            f"same {_cell(person.same)}, kappa {_cell(person.kappa)}, F1 of refused {_cell(person.refusal_f1)}",
            "",
        ]
    return lines
