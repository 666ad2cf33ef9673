"""The sections of the configuration that the main job reads: what is captured, labels, SAEs, circuits, report."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from refusal.config.types import AutoInt, Int, Number, Section, Seed, Text
from refusal.errors import InputError
from refusal.sites import CAPTURED_KINDS, STREAM_KINDS, Site, SiteKind
from refusal.untrusted.text import local_path


def _site_name(name: str) -> str:
    """Return the name of a site that some model could have; which sites a model has is known when it loads.

    Raises:
        ValueError: Says what sites are called, and the nearest such name.
    """
    return _name_of(name, STREAM_KINDS, "residuals_N, mlp_N and attention_N, e.g. residuals_3")


def _extra_site_name(name: str) -> str:
    """Return the name of a site that can be captured, or of a kind of sites.

    Raises:
        ValueError: Says what sites are called, and the nearest such name.
    """
    if name in tuple(CAPTURED_KINDS):
        return name
    said = "residuals_N, mlp_N, attention_N and heads_N, or a kind alone for every layer, e.g. heads"
    return _name_of(name, CAPTURED_KINDS, said)


def _name_of(name: str, kinds: Sequence[SiteKind], said: str) -> str:
    try:
        site = Site.parse(name)
        if site.kind not in kinds:
            raise InputError(f"{name!r} is not among these kinds")
        return site.name
    except InputError as error:
        kind, _, layer = name.rpartition("_")
        near = difflib.get_close_matches(kind or layer, list(kinds), n=1)
        number = f"_{int(layer)}" if kind and layer.isdecimal() else ""
        hint = f"; did you mean {near[0]}{number}?" if near and (number or not kind) else ""
        raise ValueError(f"allowed are {said}{hint}") from error


SiteName = Annotated[str, AfterValidator(_site_name)]
ExtraSiteName = Annotated[str, AfterValidator(_extra_site_name)]


class CaptureConfig(Section):
    """What is kept of the forward pass besides `activation_layers` at the readout position."""

    sites: tuple[ExtraSiteName, ...] = Field(
        default=(),
        description="More sites to keep: residuals_N, mlp_N, attention_N, heads_N; a kind alone means every layer.",
    )
    positions: tuple[Literal["readout", "all", "mean"] | Annotated[Int, Field(ge=-4096, le=-1)], ...] = Field(
        default=("readout",),
        min_length=1,
        description="Positions to keep: readout (always), all (of the prompt's own), mean (over these), or offsets "
        "from the prompt's end, e.g. -3; -1 is the readout position.",
    )

    @field_validator("positions", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else [value]

    @field_validator("positions", "sites")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value))


class LabelsConfig(Section):
    """What tells from a response what the model did."""

    detector: Literal["learned", "rules", "zou2023", "arditi2024", "first_token", "judge"] = Field(
        default="learned", description="Which detector decides; judge: the model that `judge` names."
    )
    judge: Text | None = Field(
        default=None, description="Folder or hub id of a sequence classifier or a chat model; for detector: judge."
    )
    judge_labels: dict[str, Literal["refused", "partly_refused", "complied", "cannot_tell"]] | None = Field(
        default=None, description="What a classifier's own labels mean; null: read from their names."
    )

    @model_validator(mode="after")
    def _fits(self) -> LabelsConfig:
        if self.detector == "judge" and self.judge is None:
            raise ValueError("detector is judge, but judge names no model; give a folder or a hub id")
        if self.detector != "judge" and self.judge is not None:
            raise ValueError(f"judge is {self.judge!r}, but detector is {self.detector}; set detector: judge")
        return self


class SaeConfig(Section):
    """Sparse autoencoders."""

    architecture: Literal["topk", "batchtopk", "matryoshka", "relu", "jumprelu"] = Field(
        default="topk", description="Kind of SAE; all aim at k active latents per activation."
    )
    d_sae: AutoInt = Field(default="auto", description="Number of latents; auto: from the amount of data.")
    k: AutoInt = Field(default="auto", description="Active latents per activation; auto: from the width of the model.")
    steps: AutoInt = Field(default="auto", description="Training steps at most; training stops early on held-out FVU.")
    batch_size: AutoInt = Field(default="auto", description="Activations per step.")
    lr: Literal["auto"] | Annotated[Number, Field(gt=0, lt=1)] = Field(
        default="auto", description="Adam's learning rate."
    )
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1, description="Independent trainings.")
    pretrained: str | None = Field(
        default=None,
        description="Folder or hf://OWNER/REPO/PATH with SAEs to use instead; {site} stands for the site, {layer} for "
        "its number.",
    )
    max_samples: Annotated[Int, Field(ge=2)] | None = Field(
        default=None, description="Prompts whose activations are trained on; null: all."
    )
    matmul_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of matrix products in training; on a CPU bfloat16 only chooses the latents of topk, "
        "whose values stay exact.",
    )
    stability_halves: bool = Field(
        default=True,
        description="Train two more SAEs a site, on halves of the prompts, to see whether other prompts give the same "
        "latents; takes as long as one more seed.",
    )
    positions: Literal["auto", "readout", "all"] = Field(
        default="auto",
        description="Prompt positions to train on: readout (the last) or all; auto: readout, see docs/decisions/0006.",
    )

    @property
    def trains_on(self) -> Literal["readout", "all"]:
        """Which positions SAEs train on, with auto resolved."""
        return "readout" if self.positions == "auto" else self.positions

    @property
    def uses_all_positions(self) -> bool:
        """Whether SAEs are trained, and on all prompt positions: inference then keeps them."""
        return self.pretrained is None and self.trains_on == "all"

    @field_validator("seeds")
    @classmethod
    def _unique(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must differ")
        return seeds

    @field_validator("pretrained")
    @classmethod
    def _folder(cls, folder: str | None) -> str | None:
        return folder if folder is None or folder.startswith("hf://") else str(local_path(folder))

    @model_validator(mode="after")
    def _fits(self) -> SaeConfig:
        if self.k != "auto" and self.d_sae != "auto" and self.k > self.d_sae:
            raise ValueError(f"k ({self.k}) is more than there are latents: allowed is 1 to d_sae ({self.d_sae})")
        return self


class CircuitConfig(Section):
    """Circuits."""

    method: Literal["attribution", "correlation"] = Field(default="attribution", description="How latents are ranked.")
    ig_steps: Int = Field(default=10, ge=1, le=1000, description="Points of the integrated gradients.")
    max_nodes: Int = Field(default=100, ge=1, description="Latents of a circuit over all sites, at most.")


class AnalysisConfig(Section):
    """Comparison and verdict."""

    monolithic_threshold: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.8, description="Mean transfer of MONOLITHIC."
    )
    partially_modular_threshold: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.5, description="... PARTIALLY MODULAR."
    )
    bootstrap: Int = Field(default=2000, ge=100, le=100_000, description="Bootstrap draws of the intervals.")
    permutations: Int = Field(default=1000, ge=0, le=100_000, description="Draws of the permutation null; 0: no test.")

    @model_validator(mode="after")
    def _ordered(self) -> AnalysisConfig:
        if self.partially_modular_threshold >= self.monolithic_threshold:
            raise ValueError(
                f"partially_modular_threshold ({self.partially_modular_threshold}) must be below monolithic_threshold "
                f"({self.monolithic_threshold})"
            )
        return self


class ReportConfig(Section):
    """Reports."""

    html: bool = Field(default=True, description="Write report.html.")
    image_format: Literal["png", "svg", "pdf"] = Field(default="png", description="Format of the figures.")


def _off_is_a_word(value: Any) -> Any:
    """YAML 1.1 reads off as false."""
    return "off" if value is False else value


class TrackingConfig(Section):
    """Experiment tracking."""

    wandb: Annotated[Literal["off", "offline", "online"], BeforeValidator(_off_is_a_word)] = Field(
        default="off", description="Weights & Biases: off, offline (sync later) or online."
    )
    project: Text = Field(default="refusal-circuits", description="Project name.")
