"""What refusal directions say about the question, in words.

1. The layer: the last residual stream before the commit site. From commit on the directions of every model are alike,
   because the output direction of a refusal is common; early on they are directions of words.
2. The evidence: transfer (one direction taken away, every category's refusals measured) where the directions' own
   necessity holds in most categories; else the disattenuated cosine, which is no causal evidence.
3. Groups, found as the circuits' groups are. Several groups of which one has several members: `groups`. Else the mean
   with its interval meets the thresholds of the configuration: `one direction` when the whole interval is at or above
   the monolithic one, `one per category` when it is below the partially modular one, else `cannot tell`.

The statement never changes the verdict: circuits are found and judged without it. Pure functions of records.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from pydantic import Field

from circuits.groups import find_groups
from refusal.config import AnalysisConfig
from refusal.directions.geometry_records import LayerGeometry, LayerTransfer
from refusal.measures import from_matrix
from refusal.record import Artefact, Record
from refusal.schemas import Matrix, Measure
from refusal.sites import Site
from refusal.wording import measured, number, plural

MIN_SHARE_MEASURED = 0.8
"""Share of the categories that must be measured: whose own direction is necessary, or told from noise."""
LIMITS = (
    "A direction is a difference in means: a mechanism that is not linear, or spread over several directions, shows in "
    "part.",
    "Directions are read at the readout position and one layer; what earlier positions hold is not seen.",
    "Alike directions do not prove a shared mechanism, and unlike ones do not exclude a shared part: circuits decide.",
)
"""What a statement cannot tell."""


class Answer(StrEnum):
    """What the directions say; the value is what is printed."""

    ONE = "one direction"
    """Taking any category's direction away takes the refusals of all away, or all directions are the same."""
    GROUPS = "groups"
    """Directions are shared within groups of categories."""
    PER_CATEGORY = "one per category"
    """Most pairs of categories have directions of their own."""
    CANNOT_TELL = "cannot tell"
    """The evidence is missing or lies between; the reason says why."""


class DirectionStatement(Record):
    """What the directions of one model say, in words."""

    answer: Answer
    reason: str = Field(description="One sentence that can be quoted.")
    layer: int | None = Field(description="N of the residuals_N that it is read at; the last before commit.")
    evidence: str | None = Field(description="transfer or cosine (disattenuated).")
    mean: Measure | None = Field(description="Mean off-diagonal value of the evidence.")
    groups: tuple[tuple[str, ...], ...] | None = Field(description="Partition of the categories by directions.")
    limits: tuple[str, ...] = LIMITS


class StatementFile(Artefact):
    """`directions/MODEL/statement.json`."""

    SCHEMA = "refusal-circuits/direction-statement/1"
    MADE_BY = "python run_directions.py --config FILE"
    model: str
    commit_site: str | None = Field(description="First site whose direct effect carries the decision.")
    statement: DirectionStatement

    @classmethod
    def none(cls, model: str, reason: str) -> StatementFile:
        """Return the file of a model whose directions say nothing, with the reason."""
        return cls.build(model=model, commit_site=None, statement=_cannot_tell(reason))


def state(
    geometry: Sequence[LayerGeometry],
    transfer: Sequence[LayerTransfer],
    commit_site: str | None,
    thresholds: AnalysisConfig,
) -> DirectionStatement:
    """Return what the directions say about the question.

    Args:
        geometry: By layer.
        transfer: By layer, of one kind of intervention; may be empty.
        commit_site: From the circuits' comparison; None where it is not known.
        thresholds: The analysis section of the configuration.
    """
    layers = {each.layer for each in geometry}
    if commit_site is None:
        return _cannot_tell("which layers lie before the decision is not known; run the compare stage of the circuits")
    layer = Site.parse(commit_site).layer - 1
    if layer not in layers:
        return _cannot_tell(f"the decision is made by {commit_site}, and no layer before it was read", None)
    found = next(each for each in geometry if each.layer == layer)
    by_transfer = next((each for each in transfer if each.layer == layer and _covers(each.transfer)), None)
    if by_transfer is not None:
        values, folds, mean, evidence = (
            by_transfer.transfer,
            by_transfer.transfer_folds,
            by_transfer.mean_transfer,
            "transfer",
        )
    else:
        values, folds, mean, evidence = found.ratio, found.ratio_folds, found.mean_ratio, "cosine"
    if mean.value is None or mean.low is None or mean.high is None:
        return _cannot_tell(f"at residuals_{layer} the {evidence} could not be measured: {mean.reason}", layer)
    if not _covers(values):
        return _cannot_tell(f"at residuals_{layer} too few categories have a direction that is more than noise", layer)
    names = tuple(values)
    groups = _groups(values, folds, names)
    answer, reason = _answer(mean, groups, thresholds)
    said = "taking a category's direction away removes" if evidence == "transfer" else "directions have a cosine of"
    what = f"at residuals_{layer}, the last before the decision, {said} {measured(mean)} " + (
        "of what each category's own does, mean over pairs" if evidence == "transfer" else "without noise, mean"
    )
    return DirectionStatement(
        answer=answer, reason=f"{what}: {reason}", layer=layer, evidence=evidence, mean=mean, groups=groups
    )


def _cannot_tell(reason: str, layer: int | None = None) -> DirectionStatement:
    return DirectionStatement(
        answer=Answer.CANNOT_TELL, reason=reason, layer=layer, evidence=None, mean=None, groups=None
    )


def _covers(values: Matrix) -> bool:
    """Return whether most categories were measured."""
    return float(np.mean([values[name][name] is not None for name in values])) >= MIN_SHARE_MEASURED


def _groups(values: Matrix, folds: tuple[Matrix, Matrix], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    halves = np.stack([from_matrix(fold, names) for fold in folds])
    index = find_groups(from_matrix(values, names), halves)
    return tuple(tuple(np.array(names)[index == group].tolist()) for group in np.unique(index))


def _answer(mean: Measure, groups: tuple[tuple[str, ...], ...], thresholds: AnalysisConfig) -> tuple[Answer, str]:
    """Return the answer and its reason, as the module's rules say."""
    assert mean.low is not None, "the caller has checked"
    assert mean.high is not None, "the caller has checked"
    high, low = thresholds.monolithic_threshold, thresholds.partially_modular_threshold
    if 1 < len(groups) < sum(map(len, groups)):
        return Answer.GROUPS, f"{plural(len(groups), 'group')} of {', '.join(str(len(group)) for group in groups)}"
    if mean.low >= high and len(groups) == 1:
        return Answer.ONE, f"the interval is at or above {number(high)}"
    if mean.high < low and len(groups) > 1:
        return Answer.PER_CATEGORY, f"the interval is below {number(low)}"
    return Answer.CANNOT_TELL, f"neither at or above {number(high)} nor below {number(low)}, and no groups stand out"
