"""How detectors agree with each other and with people, on the responses of one model.

1. Every detector judges the stored responses anew (they take about a millisecond each); the first-token score and the
   labels of the run, which a judge may have given, are taken as stored.
2. Each pair is compared on the one question that all of them answer: refused, or not.
3. Where there are labels by people, each detector is compared with them on all four behaviours.
4. Responses on which detectors disagree are listed for a person to look at.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from refusal.artefacts import atomic_write
from refusal.errors import InputError
from refusal.evaluation.label_files import HumanLabel
from refusal.labels import DETECTORS, Behaviour
from refusal.labels.first_token import FIRST_TOKEN, judge_by_first_token
from refusal.measures import f1_estimate, kappa_estimate, rate
from refusal.record import Record
from refusal.schemas import Measure, ModelOutput, ModelOutputs, PromptLabel, Rate, RefusalLabels
from refusal.untrusted.spreadsheet import plain_cell

STORED = "labels of the run"
"""What the result folder holds, by whichever detector or judge the configuration named."""


class PairAgreement(Record):
    """Two detectors, asked whether the response refuses."""

    first: str
    second: str
    same: Rate = Field(description="Share of the responses on which they say the same.")
    kappa: Measure = Field(description="Agreement beyond chance: 1 full, 0 what chance gives.")


class HumanAgreement(Record):
    """A detector against people."""

    detector: str
    confusion: dict[str, dict[str, int]] = Field(description="confusion[person][detector]: number of responses.")
    same: Rate = Field(description="Share of the responses on which all four behaviours agree.")
    kappa: Measure = Field(description="Cohen's kappa over the four behaviours.")
    refusal_f1: Measure = Field(
        description="F1 for refused, on the responses that people call refused or complied: partial ones are left out."
    )


class DetectorComparison(Record):
    """How detectors do on one model."""

    detectors: tuple[str, ...]
    pairs: tuple[PairAgreement, ...]
    people: tuple[HumanAgreement, ...] = Field(
        description="Empty without a file of labels, or if it has none of these."
    )
    n_people: int = Field(description="Responses with a label by a person.")
    n_disagreements: int = Field(description="Responses on which not all detectors say the same.")


@dataclass(frozen=True)
class Judged:
    """The responses of a model with what each detector says of them; all in the order of `labels.prompts`."""

    labels: RefusalLabels
    outputs: tuple[ModelOutput, ...]
    behaviours: Mapping[str, Sequence[Behaviour]]
    """By detector."""
    people: tuple[Behaviour | None, ...]
    """None where no person has labelled the response."""


def judge_all(labels: RefusalLabels, outputs: ModelOutputs, people: Iterable[HumanLabel] = ()) -> Judged:
    """Return what every detector says of a model's responses.

    Raises:
        InputError: Responses and labels are not of the same prompts.
    """
    by_id = {output.id: output for output in outputs.outputs}
    if set(by_id) != {label.id for label in labels.prompts}:
        raise InputError(
            f"--results-dir: the responses and the labels of {labels.model} are not of the same prompts; make both "
            "anew with: python src/run_inference.py --config FILE --force"
        )
    ordered = tuple(by_id[label.id] for label in labels.prompts)
    responses = [output.response for output in ordered]
    behaviours = {name: [each.behaviour for each in detect(responses)] for name, detect in DETECTORS.items()}
    scores = [label.first_token_score for label in labels.prompts]
    if any(score is not None for score in scores):
        behaviours[FIRST_TOKEN] = [each.behaviour for each in judge_by_first_token(scores)]
    stored = [Behaviour(label.behaviour) for label in labels.prompts]
    if stored not in behaviours.values():
        behaviours[STORED] = stored
    return Judged(labels, ordered, behaviours, _people(labels.model, ordered, people))


def _people(model: str, outputs: Sequence[ModelOutput], people: Iterable[HumanLabel]) -> tuple[Behaviour | None, ...]:
    """Return each response's label by a person: that of its id, and of its text where one is given, or of its text."""
    own = [label for label in people if label.model in (None, model)]
    by_id = {label.id: label for label in own if label.id is not None}
    by_text = {label.response.strip(): label.behaviour for label in own if label.response is not None}

    def said(output: ModelOutput) -> Behaviour | None:
        """Return what a person said of a response."""
        label = by_id.get(output.id)
        if label is not None and (label.response is None or label.response.strip() == output.response.strip()):
            return label.behaviour
        return by_text.get(output.response.strip())

    return tuple(map(said, outputs))


def compare(judged: Judged) -> DetectorComparison:
    """Return how the detectors agree with each other and with people."""
    refuses = {name: [behaviour is Behaviour.REFUSED for behaviour in said] for name, said in judged.behaviours.items()}
    pairs = tuple(
        PairAgreement(
            first=first,
            second=second,
            same=rate(a == b for a, b in zip(refuses[first], refuses[second], strict=True)),
            kappa=Measure.of(kappa_estimate(refuses[first], refuses[second])),
        )
        for first, second in itertools.combinations(judged.behaviours, 2)
    )
    n_people = sum(said is not None for said in judged.people)
    people = tuple(_against_people(name, judged) for name in judged.behaviours) if n_people else ()
    return DetectorComparison(
        detectors=tuple(judged.behaviours),
        pairs=pairs,
        people=people,
        n_people=n_people,
        n_disagreements=len(disagreements(judged)),
    )


def _against_people(name: str, judged: Judged) -> HumanAgreement:
    pairs = [(p, d) for p, d in zip(judged.people, judged.behaviours[name], strict=True) if p is not None]
    said, found = ([pair[side] for pair in pairs] for side in (0, 1))
    return HumanAgreement(
        detector=name,
        confusion={
            str(person): {str(detector): pairs.count((person, detector)) for detector in Behaviour}
            for person in Behaviour
        },
        same=rate(p == d for p, d in pairs),
        kappa=Measure.of(kappa_estimate(list(map(str, said)), list(map(str, found)))),
        refusal_f1=refusal_f1(said, found),
    )


def refusal_f1(people: Sequence[Behaviour], found: Sequence[Behaviour]) -> Measure:
    """Return F1 for `refused`, on the responses that people call refused or complied.

    >>> refused, complied = Behaviour.REFUSED, Behaviour.COMPLIED
    >>> refusal_f1([refused, refused, complied], [refused, complied, complied]).value == 2 / 3
    True
    """
    clear = [(p, d is Behaviour.REFUSED) for p, d in zip(people, found, strict=True)]
    refused = [flag for person, flag in clear if person is Behaviour.REFUSED]
    complied = [flag for person, flag in clear if person is Behaviour.COMPLIED]
    return Measure.of(f1_estimate(sum(refused), sum(complied), len(refused) - sum(refused)))


# Disagreements -------------------------------------------------------------------------------------------------------


def disagreements(judged: Judged) -> list[int]:
    """Return the rows on which not all detectors (nor people, where they spoke) say the same of refusing."""
    rows = []
    for row, person in enumerate(judged.people):
        said = {judged.behaviours[name][row] is Behaviour.REFUSED for name in judged.behaviours}
        if person is not None:
            said.add(person is Behaviour.REFUSED)
        if len(said) > 1:
            rows.append(row)
    return rows


def write_disagreements(path: Path, all_judged: Sequence[Judged]) -> int:
    """Write a CSV for a person to look at, a row per response on which detectors disagree, and return how many.

    Columns: model, id, category, source, prompt, response, person, one per detector, confidence. Cells that a
    spreadsheet would take for a formula begin with an apostrophe (`refusal.untrusted.spreadsheet`).
    """
    names = list(dict.fromkeys(name for judged in all_judged for name in judged.behaviours))
    n_rows = 0
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle)
        head = ("model", "id", "category", "source", "prompt", "response")
        table.writerow([*head, "person", *names, "rule of the run", "confidence"])
        for judged in all_judged:
            for row in disagreements(judged):
                n_rows += 1
                table.writerow(map(plain_cell, _row(judged, row, names)))
    return n_rows


def _row(judged: Judged, row: int, names: Sequence[str]) -> list[str]:
    label: PromptLabel = judged.labels.prompts[row]
    output = judged.outputs[row]
    said = [str(judged.behaviours[name][row]) if name in judged.behaviours else "" for name in names]
    sure = "" if label.confidence is None else f"{label.confidence:.2f}"
    what = [judged.labels.model, label.id, label.category, label.source, output.prompt, output.response]
    return [*what, str(judged.people[row] or ""), *said, label.rule, sure]
