"""What is said of directions, as records: a sentence a field, so that a reader of the JSON needs no other file.

Cosines, shares and transfers have no unit; effects are in logits (natural log). `matrix[a][b]` holds both orders; null
means that a number could not be measured.
"""

from __future__ import annotations

from pydantic import Field

from refusal.record import Record
from refusal.schemas import IntervalMatrix, Matrix, Measure


class Spectrum(Record):
    """Principal components of the categories' unit directions, not centred: what they have in common counts."""

    raw: tuple[Measure, ...] = Field(description="Share of squared length on each component, largest first; sums to 1.")
    corrected: tuple[Measure, ...] = Field(
        description="The same of the matrix of disattenuated cosines: without sampling noise, so small shares can fall "
        "below 0; empty where a ceiling is too low."
    )
    effective_number: Measure = Field(
        description="(sum of shares)^2 / sum of squared shares: 1 for one common direction, the number of categories "
        "for directions at right angles; from the corrected shares where they exist."
    )


class NeededDirections(Record):
    """How many directions the categories' directions span, judged on prompts that did not choose them."""

    error: tuple[float, ...] = Field(
        description="Squared error of held-out differences in means given the training ones projected on r components, "
        "r = 0 first, as a share of that for r = 0; mean over folds."
    )
    error_se: tuple[float, ...] = Field(description="Standard error over folds of the excess over the best r.")
    best: int = Field(description="The r of the smallest error.")
    chosen: int = Field(description="The smallest r whose excess is at most one standard error.")
    explained: tuple[float | None, ...] = Field(
        description="(error[0] - error[r]) / (error[0] - error[best]): share of what is reproducible; null where "
        "nothing is."
    )
    for_most: int | None = Field(description="The smallest r that reaches 0.9 of what is reproducible.")
    n_folds: int


class Subspaces(Record):
    """How far the subspaces of categories overlap: the leading `rank` directions of refused less mean complied."""

    rank: int
    angles: dict[str, dict[str, tuple[float, ...]]] = Field(
        description="Principal angles between two categories' subspaces, degrees, smallest first; all prompts."
    )
    overlap: Matrix = Field(
        description="Mean squared cosine of the principal angles between opposite halves of the prompts, in [0, 1]."
    )
    ceiling: dict[str, float | None] = Field(description="The same between the two halves of one category.")
    mean_overlap: Measure = Field(description="Mean off-diagonal overlap, as measured.")
    mean_ceiling: float | None = Field(description="Mean of the ceilings.")
    mean_ratio: Measure = Field(description="Mean off-diagonal overlap over the geometric mean of the two ceilings.")
    chance: float = Field(description="Overlap of random subspaces: rank / d_model.")


class LayerGeometry(Record):
    """The categories' differences in means at one layer: how alike, how sure, how many."""

    layer: int = Field(description="N of residuals_N: after block N.")
    norm: dict[str, float | None] = Field(
        description="Length of each category's difference in means without its noise; null where none is left."
    )
    cosine: Matrix = Field(description="Raw cosines of the differences in means.")
    cosine_ci: IntervalMatrix
    ceiling: dict[str, float | None] = Field(
        description="Noise ceiling: the cosine of two independent estimates of the same category's direction."
    )
    ratio: Matrix = Field(
        description="Disattenuated cosine: raw over the geometric mean of the two ceilings; noise can carry it past 1. "
        "Null where a ceiling is below 0.2, or its interval reaches 0."
    )
    ratio_ci: IntervalMatrix
    ratio_folds: tuple[Matrix, Matrix] = Field(description="The same from each half of the prompts alone.")
    mean_cosine: Measure = Field(description="Mean off-diagonal raw cosine.")
    mean_ceiling: Measure = Field(description="Mean over pairs of the geometric mean of the two ceilings.")
    mean_ratio: Measure = Field(description="Mean off-diagonal disattenuated cosine.")
    spectrum: Spectrum
    needed: NeededDirections
    subspaces: Subspaces


class LayerTransfer(Record):
    """What taking one category's direction away does to every category, at one layer."""

    layer: int = Field(description="Where the directions were read.")
    intervention: str = Field(description="How a direction was taken away, in words.")
    transfer: Matrix = Field(
        description="transfer[A][B]: effect of A's direction on B's refused prompts as a share of that of B's own, "
        "both less random directions. Null where B's own necessity does not hold."
    )
    transfer_ci: IntervalMatrix
    transfer_folds: tuple[Matrix, Matrix] = Field(description="The same on each half of the prompts alone.")
    mean_transfer: Measure = Field(description="Mean off-diagonal transfer.")
    necessity: dict[str, Measure] = Field(
        description="Share of m refused - m complied that taking a category's own direction away removes, less random."
    )
    random: Measure = Field(description="The same share for random directions, mean over categories.")
    refusals_left: Matrix = Field(description="Share of B's refused prompts with m > 0 when A's direction is gone.")


class LayerSpecificity(Record):
    """A contrast set's direction beside the refusal direction at one layer."""

    layer: int
    norm: float = Field(description="Length of the contrast set's difference in means.")
    cosine: Measure = Field(description="Raw cosine of the contrast direction with the refusal direction.")
    ceiling: float | None = Field(
        description="Geometric mean of the two noise ceilings: the cosine that the same direction would show."
    )
    ratio: Measure = Field(description="Disattenuated cosine: raw over ceiling.")
    null_low: float | None = Field(description="Lower 2.5 % of the cosine when the labels are shuffled.")
    null_high: float | None = Field(description="Upper 2.5 %.")
    p: float | None = Field(description="Two-sided permutation p, (1 + hits) / (1 + draws).")
    mean_positive: Measure = Field(description="Cosine of the contrast direction with the raw mean of its first class.")
    mean_negative: Measure = Field(description="... of its second class.")
    refusal_mean_positive: Measure = Field(description="Cosine of the refusal direction with the first raw mean.")
    refusal_mean_negative: Measure = Field(description="... with the second raw mean.")


class Specificity(Record):
    """What the refusal direction shares with the direction of another contrast."""

    name: str = Field(description="Name of the contrast set.")
    positive: str = Field(description="Name of the first class; the direction points to it.")
    negative: str
    n_positive: int
    n_negative: int
    n_refused: int
    n_complied: int
    draws: int
    permutations: int
    notices: tuple[str, ...] = Field(description="What the user should know about the set and the model.")
    layers: tuple[LayerSpecificity, ...]
