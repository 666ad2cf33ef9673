"""The `patching` section of the configuration: where refusal is decided, by activation patching."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from refusal.config.types import Int, Number, Section, Text, listed_once
from refusal.untrusted.text import local_path

SOURCES = ("data", "embedded")
"""Words for contrast pairs that are no file."""
LEAST_PAIRS = 6
"""Pairs below which an interval means nothing."""


class PatchingConfig(Section):
    """Activation patching, its validation, and clamping."""

    pairs: Text = Field(
        default="data",
        description="Contrast pairs: data (refused and complied prompts of the run), embedded, or a CSV or JSON file.",
    )
    n_pairs: Int = Field(default=50, ge=LEAST_PAIRS, description="Pairs for the maps, at most.")
    validation_pairs: Int = Field(
        default=40, ge=0, description="Other pairs, whose prompts are answered under ablation and clamping; 0: none."
    )
    align: Literal["auto", "length"] = Field(
        default="auto",
        description="auto: pairs of unequal length are used at the chat frame's end; length: they are left out.",
    )
    min_gap: Annotated[Number, Field(gt=0)] = Field(
        default=1.0, description="m(clean) - m(corrupted) that a pair must have, in logits."
    )
    method: Literal["exact", "attribution"] = Field(
        default="exact", description="exact: every patch is made; attribution: estimates from gradients alone."
    )
    modes: tuple[Literal["denoise", "noise"], ...] = Field(
        default=("denoise", "noise"), min_length=1, description="Which run is patched."
    )
    ablations: tuple[Literal["counterfactual", "mean", "zero"], ...] = Field(
        default=("counterfactual",), min_length=1, description="Which values are put in."
    )
    kinds: tuple[Literal["residuals", "mlp", "attention", "heads"], ...] = Field(
        default=("residuals", "mlp", "attention", "heads"), min_length=1, description="What is patched."
    )
    template_positions: Int = Field(
        default=4, ge=1, le=64, description="Last positions of the chat frame that are patched one by one."
    )
    each_position: bool = Field(
        default=False, description="Patch every position by itself, where lengths are equal; estimates always do."
    )
    ig_steps: Int = Field(
        default=5, ge=0, le=200, description="Points of the integrated gradients among the estimates; 0: none."
    )
    correction: Literal["holm", "benjamini-hochberg"] = Field(
        default="holm", description="Correction of p for the number of units of a map."
    )
    alpha: Annotated[Number, Field(gt=0, lt=1)] = Field(default=0.05, description="Corrected p of a critical unit.")
    min_effect: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.05, description="Least effect of a critical unit, as a share of m(clean) - m(corrupted)."
    )
    max_heads: Int = Field(default=20, ge=1, description="Critical heads that are validated and shown, at most.")
    attention: bool = Field(default=True, description="Read the attention patterns of the critical heads.")
    validate_with: Literal["counterfactual", "mean", "zero"] = Field(
        default="counterfactual", description="Values that ablated heads and sites take while the model answers."
    )
    random_sets: Int = Field(default=5, ge=0, le=100, description="Random heads, sites or directions as control.")
    clamp: tuple[Literal["direction", "latents"], ...] = Field(
        default=("direction", "latents"), description="What is clamped; latents need circuits."
    )
    direction: Text | None = Field(
        default=None,
        description="Folder with direction.pt and direction_metadata.json; null: that of the directions stage "
        "in the same result folder, or else the difference in means of the pairs.",
    )
    strengths: tuple[Number, ...] = Field(
        default=(-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0),
        description="Strengths of clamping: 0 as complied prompts, 1 as refused ones.",
    )
    on_answer: bool = Field(
        default=False, description="Ablate and clamp on the tokens of the answer too, not on the prompt alone."
    )
    latents: bool = Field(default=True, description="Map the latents of circuits, where there are any.")
    max_latents: Int = Field(default=40, ge=1, description="Latents of a site, at most, largest attribution first.")
    compare: tuple[tuple[Text, Text], ...] = Field(
        default=(), description="Pairs of models of the same shape to compare: [[BASE, TUNED], ...]."
    )
    latex: bool = Field(default=False, description="Write the tables as LaTeX too.")

    _listed_once = field_validator("modes", "ablations", "kinds", "clamp", "strengths", "compare")(listed_once)

    @field_validator("pairs")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in SOURCES:
            return value
        path = local_path(value)
        if path.suffix.lower() not in (".csv", ".json"):
            raise ValueError("allowed are data, embedded, or the path of a .csv or .json file with clean and corrupted")
        return str(path)

    @field_validator("direction")
    @classmethod
    def _has_a_home(cls, value: str | None) -> str | None:
        if value is not None:
            local_path(value)
        return value

    @field_validator("compare")
    @classmethod
    def _two(cls, value: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for first, second in value:
            if first == second:
                raise ValueError(f"{first!r} stands on both sides; name two models")
        return value

    @model_validator(mode="after")
    def _fits(self) -> PatchingConfig:
        if self.ablations == ("zero",) and "noise" not in self.modes:
            raise ValueError("ablations is zero alone, but modes has no noise: zeros restore nothing; add noise")
        return self
