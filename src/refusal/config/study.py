"""The configuration: every key, its default, its range, and how a YAML file becomes it.

Keys of the top level are here, those of a section in `sections`, `directions` and `patching`.

`load` reads the file once (`refusal.untrusted.yaml_file`), checks it whole and raises one error with all findings, each
with file, line, key, what was found, what is allowed and the nearest valid name (`refusal.config.messages`). Nothing
else in the project reads YAML or holds a default.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from refusal.config.directions import DirectionsConfig
from refusal.config.messages import Places, describe
from refusal.config.patching import PatchingConfig
from refusal.config.sections import (
    AnalysisConfig,
    CaptureConfig,
    CircuitConfig,
    LabelsConfig,
    ReportConfig,
    SaeConfig,
    SiteName,
    TrackingConfig,
)
from refusal.config.types import AutoInt, Int, Prose, Section, Seed, Text, listed_once
from refusal.errors import InputError
from refusal.untrusted.text import check_told_apart, local_path
from refusal.untrusted.yaml_file import Location, read_value, read_yaml


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
        if value == ():
            raise ValueError("the list is empty")
        return listed_once(value)

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

    @field_validator("result_dir", mode="before")
    @classmethod
    def _folder(cls, folder: Any) -> Any:
        return local_path(folder) if isinstance(folder, str) else folder  # as text: a path of nothing is that of "."

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
