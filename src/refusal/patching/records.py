"""The artefacts of activation patching: `patching/MODEL/patching.json`, and the comparison of two models.

Effects are shares of m(clean) - m(corrupted): 0, the patch does nothing; 1, it does all; never clipped. A score is 0 =
as corrupted, 1 = as clean. m is in logits (natural log). Rates are shares of answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from refusal.labels.behaviour import Behaviour
from refusal.measures import share
from refusal.record import Artefact, Record
from refusal.schemas import Matrix, Measure, Rate

PATCHING = "python run_patching.py --config FILE"
"""The command that makes these artefacts."""
FORMULAS = {
    "denoise": "score = (m(corrupted, patched with clean) - m(corrupted)) / (m(clean) - m(corrupted)); effect = score",
    "noise": "score = (m(clean, patched with corrupted) - m(corrupted)) / (m(clean) - m(corrupted)); "
    "effect = 1 - score",
    "mean over pairs": "sum of changes of m / sum of gaps",
}
Method = Literal["exact", "gradient", "integrated", "direct"]
"""exact: measured, later layers free; gradient, integrated: estimated; direct: measured, later writes held."""


class UnusablePair(Record):
    """A pair, or a prompt, that was not used."""

    id: str
    reason: str


class PairsRecord(Record):
    """The contrast pairs."""

    source: str = Field(description="data, embedded, or the file.")
    n: int = Field(description="Pairs of the maps.")
    n_equal_length: int = Field(description="Those whose prompts have the same number of tokens.")
    n_validation: int = Field(description="Other pairs, whose prompts are answered.")
    categories: dict[str, int] = Field(description="Pairs of the maps by category.")
    frame_before: int = Field(description="Tokens of the chat frame before the user's words.")
    frame_after: int = Field(description="Tokens after them; the last is the readout position.")
    m_clean: Measure = Field(description="Mean m of the clean prompts, logits.")
    m_corrupted: Measure = Field(description="Mean m of the corrupted prompts, logits.")
    reasons: dict[str, int] = Field(description="How many pairs or prompts were not used, by reason.")
    unusable: tuple[UnusablePair, ...]


class UnitRecord(Record):
    """One unit of a map."""

    name: str = Field(description="Site and head or latent, e.g. heads_3.1, residuals_2 #17, mlp_0.")
    site: str
    layer: int
    head: int | None
    latent: int | None
    place: str = Field(description="-1 is the readout position, -2 the one before; content: the user's words; all.")
    effect: Measure = Field(description="Share of the gap, with 95 % bootstrap interval over pairs.")
    score: float | None = Field(description="0 as corrupted, 1 as clean.")
    p: float | None = Field(description="Sign-flip permutation over pairs, two-sided.")
    p_corrected: float | None = Field(description="Corrected for all units of the map.")
    is_critical: bool


class MapRecord(Record):
    """The effect of every unit of a kind, for one way of patching."""

    kind: str = Field(description="residuals, mlp, attention, heads, writers or latents.")
    mode: Literal["denoise", "noise"]
    ablation: Literal["counterfactual", "mean", "zero"]
    method: Method
    units: tuple[UnitRecord, ...]


class AgreementRecord(Record):
    """How well an estimate follows exact patching, over the units of a map."""

    kind: str
    mode: Literal["denoise", "noise"]
    ablation: Literal["counterfactual", "mean", "zero"]
    method: Method
    spearman: float | None
    pearson: float | None
    n: int = Field(description="Units.")


class WriteRecord(Record):
    """What a head, an attention or an MLP writes at the readout position, clean less corrupted."""

    name: str
    site: str
    layer: int
    head: int | None
    to_metric: Measure = Field(description="Through the frozen final norm to m, as a share of the gap.")
    to_direction: Measure = Field(description="Along the refusal direction, as a share of the difference there.")


class AttentionRecord(Record):
    """Where a critical head looks from the readout position."""

    layer: int
    head: int
    side: Literal["clean", "corrupted"]
    shares: dict[str, Measure] = Field(description="Share of the attention by group of source tokens; they sum to 1.")
    per_token: dict[str, float | None] = Field(
        description="Mean weight of a token of the group over that of a token of the prompt; null: no such token."
    )


class RefusalsRecord(Record):
    """Refusals among generated answers."""

    refusal: Rate
    n_unclear: int = Field(
        description="Answers that neither refuse nor comply as far as can be told: a sign of damage."
    )

    @classmethod
    def of(cls, found: Sequence[Behaviour], n_sets: int = 1) -> RefusalsRecord:
        """Return the counts of some answers.

        Args:
            found: What the model did.
            n_sets: How often each prompt was answered, under different changes. Answers to the same prompt are not
                independent, so more sets do not make the interval narrower.
        """
        n_unclear = sum(each is Behaviour.CANNOT_TELL for each in found)
        n_refused = sum(each is Behaviour.REFUSED for each in found)
        return cls(refusal=share(n_refused, len(found), len(found) // max(1, n_sets)), n_unclear=n_unclear)


class ConditionRecord(Record):
    """Refusals of prompts that are refused as they are, under one ablation."""

    kind: Literal["heads", "mlp"]
    name: str
    n_units: int
    draws: int = Field(description="Sets that were tried; their answers are counted together.")
    refusals: RefusalsRecord


class DoseRecord(Record):
    """Refusals at one strength of clamping."""

    strength: float | None = Field(description="0 as complied prompts, 1 as refused ones; null: nothing clamped.")
    suppress: RefusalsRecord = Field(description="Among prompts that are refused as they are.")
    force: RefusalsRecord = Field(description="Among prompts that are complied with as they are.")


class SiteClampRecord(Record):
    """What clamping at a site does to m on the pairs of the maps, as shares of the gap."""

    site: str
    forced: float = Field(description="(m of corrupted prompts at strength 1 - m_corrupted) / gap.")
    suppressed: float = Field(description="(m_clean - m of clean prompts at strength 0) / gap.")

    @property
    def both(self) -> float:
        """The smaller of the two."""
        return min(self.forced, self.suppressed)


class ClampRecord(Record):
    """A dose-response curve."""

    what: Literal["direction", "latents", "random directions"]
    site: str
    source: str = Field(description="Where the direction or the latents come from.")
    latents: tuple[int, ...] = ()
    sites: tuple[SiteClampRecord, ...] = Field(description="What decided the site; empty for the control.")
    doses: tuple[DoseRecord, ...]


class TopPromptRecord(Record):
    """A prompt on which a latent is active."""

    id: str
    category: str
    behaviour: str
    activation: float


class LatentRecord(Record):
    """What a latent of a circuit stands for."""

    site: str
    latent: int
    circuits: tuple[str, ...] = Field(description="Categories whose circuit it is in.")
    attribution: float = Field(description="Mean attribution over these circuits, logits.")
    denoise: UnitRecord | None
    noise: UnitRecord | None
    categories: dict[str, int] = Field(description="Its top prompts by category.")
    n_refused: int = Field(description="Top prompts that were refused.")
    top_prompts: tuple[TopPromptRecord, ...]


class StructureRecord(Record):
    """Do categories use the same neurons? Cosines of the categories' attributions over a layer's MLP neurons."""

    site: str
    categories: tuple[str, ...]
    raw: Matrix
    ceiling: dict[str, float | None] = Field(description="Cosine of two halves of a category's own pairs.")
    normalised: Matrix = Field(description="Raw over the ceilings; 1: the same neurons.")
    mean: Measure = Field(description="Mean of the normalised values over pairs of categories.")


class PatchingResults(Artefact):
    """`patching/MODEL/patching.json`."""

    SCHEMA = "refusal-circuits/patching/1"
    MADE_BY = PATCHING
    model: str
    n_layers: int
    n_heads: int
    formulas: dict[str, str]
    pairs: PairsRecord
    criteria: dict[str, str | float]
    maps: tuple[MapRecord, ...]
    agreement: tuple[AgreementRecord, ...]
    direction_site: str = Field(description="Residual site of the refusal direction that writes are measured along.")
    writes: tuple[WriteRecord, ...]
    critical_heads: tuple[str, ...]
    critical_layers: dict[str, tuple[str, ...]] = Field(description="By kind, largest effect first.")
    attention: tuple[AttentionRecord, ...]
    validation: tuple[ConditionRecord, ...]
    clamping: tuple[ClampRecord, ...]
    latents: tuple[LatentRecord, ...]
    structure: tuple[StructureRecord, ...]
    circuits: str | None = Field(description="Digest of the circuits whose latents are mapped; null: none.")
    notices: tuple[str, ...]


class CellComparison(Record):
    """One unit in two models."""

    name: str
    place: str
    layer: int
    head: int | None
    first: float | None = Field(description="Effect in the first model.")
    second: float | None = Field(description="Effect in the second model.")
    difference: Measure = Field(description="second - first, paired bootstrap over pairs in common.")
    effect_size: float | None = Field(
        description="Mean of the paired differences over their standard deviation (Cohen's d_z)."
    )
    p_corrected: float | None


class MapComparison(Record):
    """A map of two models side by side."""

    kind: str
    mode: Literal["denoise", "noise"]
    cells: tuple[CellComparison, ...]
    correlation: float | None = Field(description="Spearman's correlation of the two maps.")


class DirectionComparison(Record):
    """The refusal direction of two models at one site."""

    site: str
    cosine: Measure
    ceiling_first: float | None = Field(description="Cosine of two halves of the pairs in the first model.")
    ceiling_second: float | None
    norm_first: float
    norm_second: float


class PatchingComparison(Artefact):
    """`patching/comparisons/FIRST/SECOND/comparison.json`."""

    SCHEMA = "refusal-circuits/patching-comparison/1"
    MADE_BY = PATCHING
    first: str
    second: str
    n_prompts_in_common: int = Field(description="Prompts that both models were asked.")
    same_behaviour: Rate = Field(description="Share of them on which both did the same.")
    n_pairs: int
    reasons: dict[str, int]
    maps: tuple[MapComparison, ...]
    directions: tuple[DirectionComparison, ...]
    notices: tuple[str, ...]
