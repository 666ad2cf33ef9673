"""The configuration: every key, its default, its range, and how a YAML file becomes it.

`load` reads the file once (`refusal.yaml_file`), checks it whole and raises one error with all findings, each with
file, line, key, what was found, what is allowed and the nearest valid name (`refusal.config_messages`). Nothing else in
the project reads YAML or holds a default.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from refusal.config_messages import Places, describe
from refusal.config_patching import PatchingConfig
from refusal.config_types import AutoInt, Int, Number, Prose, Section, Seed, Text
from refusal.errors import InputError
from refusal.sites import CAPTURED_KINDS, STREAM_KINDS, Site, SiteKind
from refusal.usable_text import check_told_apart, local_path
from refusal.yaml_file import Location, read_value, read_yaml


class Stage(StrEnum):
    """The stages of the main job, in the order in which they run."""

    INFERENCE = "inference"
    """Run the prompts: activations, responses, what the model did."""
    SAES = "saes"
    """Train one sparse autoencoder per site and seed."""
    CIRCUITS = "circuits"
    """Find each category's circuit."""
    COMPARE = "compare"
    """Measure transfer between categories and reach a verdict."""
    DIRECTIONS = "directions"
    """Find, select and try refusal directions; beside the circuits, from the inference stage alone."""
    PATCHING = "patching"
    """Locate refusal by activation patching. Runs where it is asked for."""
    REPORT = "report"
    """Write summary, figures and the HTML report."""


MAIN_STAGES = (Stage.INFERENCE, Stage.SAES, Stage.CIRCUITS, Stage.COMPARE, Stage.REPORT)
"""The stages that run when a configuration names none."""


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

    @field_validator("text_file")
    @classmethod
    def _file(cls, path: Path | None) -> Path | None:
        return None if path is None else local_path(str(path) if path.parts else "")


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


class Config(Section):
    """Everything a run depends on."""

    dataset_dir: Text = Field(default="embedded", description="embedded, a folder of OR-Bench CSVs, or a hub id.")
    categories: Literal["all"] | tuple[Text, ...] = Field(default="all", description="all, or a list of categories.")
    num_samples_per_category: Int = Field(default=100, ge=2, description="Prompts per category, half safe, half toxic.")
    safe_subset: Literal["80k", "hard-1k", "both"] = Field(
        default="80k", description="Files that safe prompts come from."
    )
    shuffle: bool = Field(default=True, description="Shuffle the prompts; their activations do not depend on it.")
    seed: Seed = Field(default=0, description="Decides the draw, the folds and every resampling.")
    models: tuple[Text, ...] = Field(
        default=("planted/monolithic", "planted/modular"),
        min_length=1,
        description="planted/NAME, a folder or a hub id.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="Where models run.")
    device_map: Literal["auto", "balanced", "sequential"] | None = Field(
        default=None,
        description="Spread a model over all CUDA devices (accelerate), when it does not fit one; null: on one device.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="Precision of models.")
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that comes with a model, with your rights; only for code that you have read.",
    )
    batch_size: AutoInt = Field(default="auto", description="Prompts per batch; halves itself when memory runs out.")
    max_new_tokens: Int = Field(default=32, ge=1, le=4096, description="Longest response, in tokens.")
    system_prompt: Prose | None = Field(default=None, description="System prompt; null: none.")
    activation_layers: Literal["all"] | tuple[SiteName, ...] = Field(
        default="all", description="all (every residuals_N) or sites."
    )
    stages: tuple[Stage, ...] = Field(default=MAIN_STAGES, min_length=1, description="Stages to run.")
    result_dir: Path = Field(default=Path("results"), description="Where everything is written.")
    train_saes: bool = Field(default=True, description="Train SAEs in the saes stage; false: use those that are there.")
    capture: CaptureConfig = Field(default_factory=CaptureConfig)
    labels: LabelsConfig = Field(default_factory=lambda: LabelsConfig())
    sae: SaeConfig = Field(default_factory=lambda: SaeConfig())
    circuit: CircuitConfig = Field(default_factory=CircuitConfig)
    analysis: AnalysisConfig = Field(default_factory=AnalysisConfig)
    directions: DirectionsConfig = Field(default_factory=lambda: DirectionsConfig())
    patching: PatchingConfig = Field(default_factory=PatchingConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @property
    def keeps_all_positions(self) -> bool:
        """Whether inference keeps all own positions of the prompts."""
        return self.sae.uses_all_positions or "all" in self.capture.positions

    @field_validator("categories", "models", "activation_layers", "stages")
    @classmethod
    def _listed_once(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            if not value:
                raise ValueError("the list is empty")
            twice = [item for item in value if value.count(item) > 1]
            if twice:
                raise ValueError(f"{str(twice[0])!r} is listed twice")
        return value

    @field_validator("models")
    @classmethod
    def _told_apart(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse names that differ in case only: on some file systems their results would be one."""
        check_told_apart(models)
        return models

    @field_validator("dataset_dir", "models")
    @classmethod
    def _has_a_home(cls, value: Any) -> Any:
        for name in value if isinstance(value, tuple) else (value,):
            if name.startswith("~"):
                local_path(name)
        return value

    @field_validator("result_dir")
    @classmethod
    def _folder(cls, folder: Path) -> Path:
        return local_path(str(folder) if folder.parts else "")

    @field_validator("device_map")
    @classmethod
    def _has_devices(cls, device_map: str | None, info: ValidationInfo) -> str | None:
        device = info.data.get("device")
        if device_map is not None and device in ("cpu", "mps"):
            raise ValueError(
                f"it spreads a model over CUDA devices, and device is {device}; set device: cuda, or device_map: null"
            )
        return device_map

    @field_validator("num_samples_per_category")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"must be even (half safe, half toxic); {value - 1} and {value + 1} are")
        return value


# Reading -------------------------------------------------------------------------------------------------------------


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration in a YAML file.

    Args:
        path: The file.
        overrides: `KEY=VALUE` with dotted keys, values read as YAML; they replace what the file says.

    Raises:
        InputError: Anything is wrong; all findings are in the one message.
    """
    path = Path(path)
    file = read_yaml(path)
    findings = list(file.findings)
    written: dict[Location, str] = {}
    for override in overrides:
        written[_override(file.content, override)] = f"--set {override}"
    try:
        config = Config.model_validate(file.content)
    except ValidationError as error:
        findings += describe(error, Config, Places(path, file.lines, written))
    if findings:
        raise InputError("\n".join(finding.text for finding in sorted(findings, key=lambda finding: finding.line)))
    return config


def _override(content: dict[str, Any], override: str) -> Location:
    """Write an override into `content` and return its keys."""
    key, sign, text = override.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not sign or not all(keys):
        raise InputError(f"--set {override}: found no KEY=VALUE; write for instance --set sae.lr=1e-3")
    try:
        value = read_value(text)
    except ValueError as error:
        raise InputError(f"--set {override}: the value is not valid YAML: {error}; put it in quotes") from error
    for section in keys[:-1]:
        if content.get(section) is None:
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            raise InputError(f"--set {override}: {section} is no section; it has no key {keys[-1]}")
    content[keys[-1]] = value
    return keys


class LoadingOptions(TypedDict):
    """How models are loaded."""

    device: str
    dtype: str
    device_map: str | None
    trust_remote_code: bool


def how_to_load(config: Config) -> LoadingOptions:
    """Return what of a configuration says how models are loaded."""
    return LoadingOptions(
        device=config.device,
        dtype=config.dtype,
        device_map=config.device_map,
        trust_remote_code=config.trust_remote_code,
    )


def plain(config: Config) -> dict[str, Any]:
    """Return the configuration as JSON holds it."""
    return config.model_dump(mode="json")


def chosen(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """Return the values of dotted keys, sections as a whole, as JSON holds them.

    >>> chosen(Config(), ["seed", "circuit.method"])
    {'seed': 0, 'circuit.method': 'attribution'}
    """
    found: dict[str, Any] = {}
    for key in keys:
        value: Any = plain(config)
        for part in key.split("."):
            value = value[part]
        found[key] = value
    return found
