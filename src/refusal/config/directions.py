"""The `directions` section of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from refusal.config.types import AutoInt, Int, Number, Section, Text
from refusal.untrusted.text import local_path

Share = Annotated[Number, Field(gt=0, lt=1)]
ContrastName = Text | tuple[Text, Text]


class DirectionsConfig(Section):
    """Refusal directions."""

    contrast: Literal["behaviour", "dataset_label"] = Field(
        default="behaviour",
        description="Between which prompts means differ: refused and complied, or toxic refused and safe complied.",
    )
    n_positions: AutoInt = Field(
        default="auto", description="Last prompt tokens to read at; auto: those that all prompts end with."
    )
    split: tuple[Share, Share, Share] = Field(
        default=(0.5, 0.2, 0.3), description="Shares of train, validation and test prompts."
    )
    validation_prompts: Int = Field(default=32, ge=2, description="Prompts of each side to select on, at most.")
    test_prompts: Int = Field(default=64, ge=2, description="Prompts of each side to judge on, at most.")
    ablate_to: Literal["auto", "zero", "complied"] = Field(
        default="auto",
        description="What ablation leaves: nothing (published), or the value in complied prompts; auto: whichever "
        "passes the filters and removes more on validation prompts.",
    )
    steer_at: Literal["auto", "all", "answer", "readout"] = Field(
        default="auto",
        description="Positions that interventions act on; auto: where ablation and addition both work best on "
        "validation prompts.",
    )
    max_depth: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.8, description="Directions are taken from layers below this share of the depth."
    )
    max_kl: Annotated[Number, Field(ge=0)] = Field(
        default=0.1, description="Largest change of the first token on complied prompts under ablation, nats."
    )
    min_induce: Number = Field(default=0.0, description="Smallest m of complied prompts under addition, logits.")
    coefficients: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        default=(0.25, 0.5, 1.0, 1.5), min_length=1, description="Doses, times the difference in means."
    )
    controls: Int = Field(default=3, ge=0, le=100, description="Random directions of equal norm beside every dose.")
    contrasts: tuple[ContrastName, ...] = Field(
        default=("harmful_harmless", "negative_neutral"),
        description="Other contrasts to hold the refusal direction against: shipped sets, files with text and label, "
        "or pairs of files.",
    )
    text_file: Path | None = Field(
        default=None, description="Ordinary text on which perplexity is measured too; UTF-8, a text a paragraph."
    )

    @field_validator("split")
    @classmethod
    def _whole(cls, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        if abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares sum to {sum(shares):g}; train, validation and test must sum to 1")
        return shares

    @field_validator("coefficients")
    @classmethod
    def _ascending(cls, doses: tuple[float, ...]) -> tuple[float, ...]:
        if list(doses) != sorted(set(doses)):
            raise ValueError("doses must ascend and differ")
        return doses

    @field_validator("contrasts")
    @classmethod
    def _have_homes(cls, contrasts: tuple[ContrastName, ...]) -> tuple[ContrastName, ...]:
        for name in contrasts:
            for each in (name,) if isinstance(name, str) else name:
                local_path(each)
        return contrasts

    @field_validator("text_file")
    @classmethod
    def _file(cls, path: Path | None) -> Path | None:
        return None if path is None else local_path(str(path) if path.parts else "")
