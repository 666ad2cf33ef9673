"""The JSON artefacts of the directions stage, in `directions/MODEL/`: one class a file, a sentence a field.

m is the refusal metric at the first answer token, in logits. Layers are ours: N is `residuals_N`, the stream after
block N; `published_layer` counts as the published code does (the input of that block), N + 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from refusal.directions.geometry_records import LayerGeometry, LayerTransfer, Specificity
from refusal.record import Artefact, Record
from refusal.schemas import Interval, Measure, Rate

MADE_BY = "python run_directions.py --config FILE"


CONDITIONS = ("baseline", "ablation", "published ablation", "addition", "subtraction")
"""Names of what is tried on test prompts."""
AblateTo = Literal["zero", "complied"]
"""What ablation leaves: nothing (published), or what complied prompts have at the same place."""


class Candidate(Record):
    """One candidate direction under one kind of ablation, scored on the validation prompts."""

    position: int = Field(description="Counted from the end of the prompt; -1 is the readout position.")
    layer: int = Field(description="The stream after this block.")
    published_layer: int = Field(description="The same place as the published code counts: the input of this block.")
    ablate_to: AblateTo = Field(description="What ablation leaves in place of the direction.")
    norm: float = Field(description="Length of the difference in means.")
    bypass: float | None = Field(description="Mean m of refused prompts under ablation; low: refusal is bypassed.")
    bypass_ci: Interval = Field(description="95 % bootstrap interval over validation prompts; so are the others.")
    bypass_published: float | None = Field(
        description="The same in the published form: log P - log(1 - P), P: probability of the refusal openers."
    )
    induce: float | None = Field(description="Mean m of complied prompts with the difference in means added once.")
    induce_ci: Interval
    induce_published: float | None = Field(description="The same in the published form.")
    kl: float | None = Field(
        description="Mean Kullback-Leibler divergence of the first token's distribution under ablation from the one "
        "without, on complied prompts, nats."
    )
    kl_ci: Interval
    left_out: tuple[str, ...] = Field(description="Which filters it fails; empty: it passes.")


class Filters(Record):
    """What a candidate must satisfy."""

    max_depth: float = Field(description="published_layer must be below this share of the layers.")
    max_kl: float
    min_induce: float


class RegionTrial(Record):
    """What the chosen direction does on validation prompts when it acts in one region."""

    removed: float = Field(description="Share of refused prompts answered under ablation.")
    induced: float = Field(description="Share of complied prompts refused under addition.")


class Selection(Artefact):
    """`selection.json`: the scores of every candidate and which was chosen; `selection.csv` holds the same table."""

    SCHEMA = "refusal-circuits/direction-selection/1"
    MADE_BY = MADE_BY
    model: str
    plan: str = Field(description="Hash of all that the scores depend on; another plan is scored anew.")
    n_refused: int = Field(description="Refused validation prompts.")
    n_complied: int = Field(description="Complied validation prompts.")
    n_layers: int
    baseline_refused: float = Field(description="Mean m of the refused prompts as they are.")
    baseline_complied: float
    filters: Filters
    candidates: tuple[Candidate, ...]
    chosen: int = Field(description="Index of the chosen candidate.")
    fallback: str | None = Field(description="Why a candidate was chosen that fails a filter; null when it passes all.")
    regions: dict[str, RegionTrial] = Field(
        description="What was tried to decide where to act; empty: it was asked for."
    )
    steer_at: Literal["all", "answer", "readout"] = Field(description="Where interventions act.")
    induced: dict[float, float] = Field(
        description="Share of complied prompts refused there, by how many times the difference in means was added; 1 "
        "is the published dose, larger ones are tried where it is not enough."
    )
    coefficient: float = Field(description="How many times it is added in the evaluation.")


class Behaviours(Record):
    """What the model did with some prompts."""

    refused: Rate
    complied: Rate
    other: Rate = Field(description="Partly refused, or no detector could tell.")


class SteeredAnswer(Record):
    """One answer under an intervention."""

    id: str = Field(description="Id of the prompt.")
    response: str
    behaviour: Literal["refused", "partly_refused", "complied", "cannot_tell"]


class Condition(Artefact):
    """`responses/NAME.json`: the answers to the test prompts under one intervention, and what it costs on text."""

    SCHEMA = "refusal-circuits/steered-responses/1"
    MADE_BY = MADE_BY
    plan: str = Field(description="Hash of all that the answers depend on.")
    name: str = Field(description="baseline, ablation, published ablation, addition or subtraction.")
    intervention: str = Field(description="What was done, in words.")
    groups: dict[str, Behaviours] = Field(
        description="By what the model did without intervention (refused, complied), by dataset label (toxic, safe), "
        "and by category among the refused (refused: CATEGORY)."
    )
    cross_entropy: Measure = Field(description="Nats per token of the model's own complied answers to test prompts.")
    perplexity: Measure
    text_cross_entropy: Measure | None = Field(description="The same on the text file of the configuration, if any.")
    text_perplexity: Measure | None
    answers: tuple[SteeredAnswer, ...]


class DosePoint(Record):
    """One dose of a curve."""

    dose: float = Field(description="Times the difference in means; of an ablation, the share that is taken.")
    refused: Rate
    metric: Measure = Field(description="Mean m.")
    random_refused: tuple[float, ...] = Field(description="Share refused with each random direction of equal norm.")
    random_metric: tuple[float, ...] = Field(description="Mean m with each random direction.")


class DoseCurve(Record):
    """How refusal follows the dose of an intervention on test prompts."""

    intervention: Literal["addition", "subtraction", "ablation"]
    prompts: Literal["refused", "complied"] = Field(description="Which test prompts, by what the model did.")
    points: tuple[DosePoint, ...]


class DoseFile(Artefact):
    """`doses.json`: the dose-response curves."""

    SCHEMA = "refusal-circuits/dose-response/1"
    MADE_BY = MADE_BY
    plan: str = Field(description="Hash of all that the curves depend on; curves of another plan are made anew.")
    curves: tuple[DoseCurve, ...]


class CategoryDirections(Artefact):
    """`categories.json`: the categories' own directions compared, layer by layer."""

    SCHEMA = "refusal-circuits/category-directions/1"
    MADE_BY = MADE_BY
    plan: str = Field(description="Hash of all that the numbers depend on.")
    model: str
    reason: str | None = Field(description="Why categories could not be compared; else null.")
    left_out: dict[str, str] = Field(description="Categories that are not compared, each with the reason.")
    geometry: tuple[LayerGeometry, ...] = Field(description="Cosines with noise ceilings, components, subspaces.")
    transfer: tuple[LayerTransfer, ...] = Field(description="What one category's direction does to every category.")


class ContrastDirections(Artefact):
    """`contrasts.json`: the refusal direction beside the directions of other contrasts."""

    SCHEMA = "refusal-circuits/contrast-directions/1"
    MADE_BY = MADE_BY
    plan: str = Field(description="Hash of all that the numbers depend on.")
    model: str
    contrasts: tuple[Specificity, ...]


class ProbeResult(Record):
    """A probe at one layer, read at the readout position."""

    kind: Literal["logistic", "mass_mean", "mass_mean_covariance"]
    layer: int
    accuracy: Measure
    auc: Measure


class Separated(Record):
    """How far apart test prompts lie along a layer's difference in means."""

    layer: int
    separation: Measure = Field(description="Cohen's d of the projections, refused less complied.")


class Chosen(Record):
    """The selected direction and how it is used."""

    position: int
    layer: int
    site: str
    norm: float
    ablate_to: AblateTo
    steer_at: Literal["all", "answer", "readout"]
    fallback: str | None = Field(description="Why it was chosen though it fails a filter; else null.")


class Directions(Artefact):
    """`directions.json`: what the stage found; selection, answers and dose-response have files of their own."""

    SCHEMA = "refusal-circuits/directions/1"
    MADE_BY = MADE_BY
    model: str
    reason: str | None = Field(description="Why no direction could be formed or selected; else null.")
    contrast: Literal["behaviour", "dataset_label"]
    n: dict[str, dict[str, int]] = Field(description="Prompts by part (train, validation, test) and side.")
    n_by_category: dict[str, dict[str, int]] = Field(description="Training prompts by category and side.")
    positions: tuple[int, ...] = Field(description="Positions that directions were read at.")
    norms: tuple[tuple[float, ...], ...] = Field(description="Norm of the difference in means by position and layer.")
    chosen: Chosen | None
    separation: tuple[Separated, ...] = Field(description="By layer, at the readout position, on test prompts.")
    probes: tuple[ProbeResult, ...]
    notices: tuple[str, ...]
