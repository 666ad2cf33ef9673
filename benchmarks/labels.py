"""How well detectors agree with people, on a labelled file; or fit the weights of the default detector to one.

    python benchmarks/labels.py FILE.jsonl            # cross-validated table
    python benchmarks/labels.py FILE.jsonl --as-is    # the detectors as they ship: for responses that chose no weight
    python benchmarks/labels.py FILE.jsonl --train    # write src/refusal/labels/coefficients.json

FILE: as `run_analysis.py --labels` takes it, with response (or completion), label, id (or prompt_id) and model.
`learned` is fitted anew in each fold. Folds: five, split by prompt (all its answers on one side); each model
left out in turn; each family of models (by the first letters of the name) left out in turn. F1 is for `refused` on what
people call refused or complied; the interval of a fold-wise figure is Wilson's, of pooled predictions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut

from refusal.errors import InputError
from refusal.evaluation.agreement import refusal_f1
from refusal.evaluation.label_files import read_labels
from refusal.labels import DEFAULT, DETECTORS, Behaviour, Judgement
from refusal.labels.learned import features, judge_features
from refusal.labels.reading import read
from refusal.labels.rules import judge_reading
from refusal.labels.training import Labelled, cut, fit
from refusal.measures import kappa_estimate
from refusal.schemas import Measure

COEFFICIENTS = Path(__file__).parents[1] / "src" / "refusal" / "labels" / "coefficients.json"
FAMILY_LETTERS = 3
"""Letters of a name that models of a family share (llama2new, llama2orig)."""
LENGTHS = (None, 45, 22)
"""Words of a response that are read; None: all."""
CONFIDENCES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.01)
"""Ends of the classes in which confidence is checked."""
Detect = Callable[[Sequence[str]], list[Judgement]]


def labelled(path: Path) -> list[Labelled]:
    """Return the labelled responses of a file.

    Raises:
        InputError: The file is wrong, or a record has no response.
    """
    found = read_labels(path)
    if any(label.response is None for label in found):
        raise InputError(f"{path}: every record needs response (or completion)")
    return [
        Labelled(label.response or "", label.behaviour, label.id or label.response or "", label.model or "one")
        for label in found
    ]


def fitted(training: Sequence[Labelled]) -> Detect:
    """Return the default detector with weights fitted to these responses."""
    coefficients = fit(training)

    def detect(responses: Sequence[str]) -> list[Judgement]:
        """Return what the detector says."""
        readings = [read(response) for response in responses]
        rules = [judge_reading(reading) for reading in readings]
        return [
            rule if reading.unreadable else judge_features(features(reading), rule, coefficients)
            for reading, rule in zip(readings, rules, strict=True)
        ]

    return detect


def shipped(name: str) -> Detect:
    """Return a detector as it ships."""
    return DETECTORS[name]


def splits(rows: Sequence[Labelled], by: str) -> Iterator[tuple[list[int], list[int]]]:
    """Yield rows to fit and rows to test."""
    groups = {
        "prompt": [row.prompt for row in rows],
        "model": [row.model for row in rows],
        "family": [row.model[:FAMILY_LETTERS] for row in rows],
    }[by]
    splitter = GroupKFold(min(5, len(set(groups)))) if by == "prompt" else LeaveOneGroupOut()
    for training, test in splitter.split(np.zeros(len(rows)), groups=groups):
        yield training.tolist(), test.tolist()


def cross_validated(rows: Sequence[Labelled], by: str) -> dict[int | None, list[Judgement]]:
    """Return what the default detector says of each response when it was not fitted to its group, by words read."""
    found = {length: [Judgement(Behaviour.CANNOT_TELL, "")] * len(rows) for length in LENGTHS}
    for training, test in splits(rows, by):
        detect = fitted([rows[row] for row in training])
        for length in LENGTHS:
            for row, judgement in zip(test, detect(_texts([rows[row] for row in test], length)), strict=True):
                found[length][row] = judgement
    return found


def _texts(rows: Sequence[Labelled], length: int | None) -> list[str]:
    return [row.response if length is None else cut(row.response, length) for row in rows]


def _cell(measure: Measure) -> str:
    ends = "" if measure.low is None else f" [{measure.low:.3f}, {measure.high:.3f}]"
    return "-" if measure.value is None else f"{measure.value:.3f}{ends}"


def report(name: str, rows: Sequence[Labelled], judgements: Sequence[Judgement]) -> None:
    """Print a line: F1 of refused, F1 of partly refused, kappa and agreement over four behaviours."""
    found = [judgement.behaviour for judgement in judgements]
    people = [row.behaviour for row in rows]
    partial = [behaviour is Behaviour.PARTLY_REFUSED for behaviour in people]
    said = [behaviour is Behaviour.PARTLY_REFUSED for behaviour in found]
    hits = sum(a and b for a, b in zip(partial, said, strict=True))
    f1_partial = 2 * hits / max(1, sum(partial) + sum(said))
    kappa = Measure.of(kappa_estimate(list(map(str, people)), list(map(str, found))))
    same = np.mean([a == b for a, b in zip(people, found, strict=True)])
    cells = (f"{name:<34}", f"{_cell(refusal_f1(people, found)):<24}", f"{f1_partial:.2f}  ", f"{_cell(kappa):<24}")
    print(*cells, f"{same:.3f}", flush=True)


def calibration(rows: Sequence[Labelled], judgements: Sequence[Judgement]) -> None:
    """Print how often a judgement is right, by how sure it is."""
    print("confidence      n  mean  right")
    for low, high in itertools.pairwise(CONFIDENCES):
        inside = [
            (judgement.confidence, judgement.behaviour is row.behaviour)
            for row, judgement in zip(rows, judgements, strict=True)
            if judgement.confidence is not None and low <= judgement.confidence < high
        ]
        if inside:
            sure, right = np.mean(inside, axis=0)
            print(f"{low:.2f} to {min(high, 1):.2f} {len(inside):>4}  {sure:.2f}  {right:.2f}")


def main() -> None:
    """Print the table, or write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--as-is", action="store_true", help="no cross-validation")
    parser.add_argument("--train", action="store_true", help="write the weights")
    arguments = parser.parse_args()
    rows = labelled(arguments.file)
    if arguments.train:
        COEFFICIENTS.write_text(json.dumps(fit(rows).as_json(), indent=0, sort_keys=True) + "\n", encoding="utf-8")
        print(f"written: {COEFFICIENTS}")
        return
    n_models, n_prompts = len({row.model for row in rows}), len({row.prompt for row in rows})
    print(f"{len(rows)} responses of {n_models} models to {n_prompts} prompts")
    print(f"{'detector':<34} {'F1 of refused':<24} partly {'kappa':<24} same")
    sure: list[Judgement] = []
    for length in LENGTHS:
        suffix = "" if length is None else f", {length} words"
        for name in DETECTORS:
            if name != DEFAULT or arguments.as_is:
                report(name + suffix, rows, shipped(name)(_texts(rows, length)))
    for by in () if arguments.as_is else ("prompt", "model", "family"):
        for length, found in cross_validated(rows, by).items():
            report(f"{DEFAULT}, by {by}" + ("" if length is None else f", {length} words"), rows, found)
            if by == "prompt" and length is None:
                sure = found
    calibration(rows, sure or shipped(DEFAULT)(_texts(rows, None)))
    texts = _texts(rows, None)
    for name, detect in DETECTORS.items():
        started = time.process_time()
        detect(texts)
        print(f"{name}: {(time.process_time() - started) / len(texts) * 1e3:.2f} ms of CPU a response")


if __name__ == "__main__":
    main()
