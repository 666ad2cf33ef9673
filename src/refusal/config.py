"""The configuration: every key, its default, its range, and how a YAML file becomes it.

`load` reads the file once, checks it whole and raises one error with all findings, each with file, line, key, what was
found, what is allowed and the nearest valid name. Nothing else in the project reads YAML or holds a default.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from refusal.errors import InputError


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
    REPORT = "report"
    """Write summary, figures and the HTML report."""


def _number_from_text(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; take it as the number it is meant to be."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


Number = Annotated[float, BeforeValidator(_number_from_text)]
AutoInt = Literal["auto"] | Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class SaeConfig(Section):
    """Sparse autoencoders."""

    architecture: Literal["topk"] = Field(default="topk", description="Kind of SAE.")
    d_sae: AutoInt = Field(default="auto", description="Number of latents; auto: from the amount of data.")
    k: AutoInt = Field(default="auto", description="Active latents per activation; auto: from the width of the model.")
    steps: AutoInt = Field(default="auto", description="Training steps at most; training stops early on held-out FVU.")
    batch_size: AutoInt = Field(default="auto", description="Activations per step.")
    lr: Literal["auto"] | Annotated[Number, Field(gt=0, lt=1)] = Field(
        default="auto", description="Adam's learning rate."
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 2), min_length=1, description="Independent trainings."
    )
    pretrained: str | None = Field(
        default=None, description="Folder with SAEs to use instead; {site} stands for the site."
    )
    max_samples: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Activations to train on; null: all."
    )

    @field_validator("seeds")
    @classmethod
    def _unique(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must differ")
        return seeds


class CircuitConfig(Section):
    """Circuits."""

    method: Literal["attribution", "correlation"] = Field(default="attribution", description="How latents are ranked.")
    ig_steps: int = Field(default=10, ge=1, le=1000, description="Points of the integrated gradients.")
    max_nodes: int = Field(default=100, ge=1, description="Latents of a circuit over all sites, at most.")


class AnalysisConfig(Section):
    """Comparison and verdict."""

    monolithic_threshold: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.8, description="Mean transfer of MONOLITHIC."
    )
    partially_modular_threshold: Annotated[Number, Field(gt=0, le=1)] = Field(
        default=0.5, description="... PARTIALLY MODULAR."
    )
    bootstrap: int = Field(default=2000, ge=100, le=100_000, description="Bootstrap draws of the intervals.")
    permutations: int = Field(default=1000, ge=0, le=100_000, description="Draws of the permutation null; 0: no test.")

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
    project: str = Field(default="refusal-circuits", min_length=1, description="Project name.")


class Config(Section):
    """Everything a run depends on."""

    dataset_dir: str = Field(
        default="embedded", min_length=1, description="embedded, a folder of OR-Bench CSVs, or a hub id."
    )
    categories: Literal["all"] | tuple[str, ...] = Field(default="all", description="all, or a list of categories.")
    num_samples_per_category: int = Field(default=100, ge=2, description="Prompts per category, half safe, half toxic.")
    safe_subset: Literal["80k", "hard-1k", "both"] = Field(
        default="80k", description="Files that safe prompts come from."
    )
    shuffle: bool = Field(default=True, description="Shuffle the prompts; their activations do not depend on it.")
    seed: int = Field(default=0, ge=0, description="Decides the draw, the folds and every resampling.")
    models: tuple[str, ...] = Field(
        default=("planted/monolithic", "planted/modular"),
        min_length=1,
        description="planted/NAME, a folder or a hub id.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="Where models run.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="Precision of models.")
    batch_size: AutoInt = Field(default="auto", description="Prompts per batch; halves itself when memory runs out.")
    max_new_tokens: int = Field(default=32, ge=1, le=4096, description="Longest response, in tokens.")
    system_prompt: str | None = Field(default=None, description="System prompt; null: none.")
    activation_layers: Literal["all"] | tuple[str, ...] = Field(
        default="all", description="all (every residuals_N) or sites."
    )
    stages: tuple[Stage, ...] = Field(default=tuple(Stage), min_length=1, description="Stages to run.")
    result_dir: Path = Field(default=Path("results"), description="Where everything is written.")
    train_saes: bool = Field(default=True, description="Train SAEs in the saes stage; false: use those that are there.")
    sae: SaeConfig = Field(default_factory=lambda: SaeConfig())
    circuit: CircuitConfig = Field(default_factory=CircuitConfig)
    analysis: AnalysisConfig = Field(default_factory=AnalysisConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

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

    @field_validator("num_samples_per_category")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"must be even (half safe, half toxic); {value - 1} and {value + 1} are")
        return value


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finding:
    """Something wrong, with where it stands."""

    line: int
    text: str


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration in a YAML file.

    Args:
        path: The file.
        overrides: `KEY=VALUE` with dotted keys, values read as YAML; they replace what the file says.

    Raises:
        InputError: Anything is wrong; all findings are in the one message.
    """
    path = Path(path)
    node = _compose(path)
    content, lines, findings = _plain(path, node)
    for override in overrides:
        _override(content, override)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        findings += [_describe(path, lines, problem, overrides) for problem in error.errors()]
    if findings:
        raise InputError("\n".join(finding.text for finding in sorted(findings, key=lambda finding: finding.line)))
    return config


def _compose(path: Path) -> yaml.Node | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = sorted(str(found) for found in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; in that folder are {', '.join(near[:6])}" if near else ""
        raise InputError(
            f"--config {path}: no such file; give a YAML file, e.g. configurations/quickstart.yaml{hint}"
        ) from error
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as error:
        raise InputError(f"--config {path}: not readable as a UTF-8 text file ({error}); give a YAML file") from error
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or "cannot be read"
        raise InputError(
            f"{path}{line}: not valid YAML: {problem}; check indentation (spaces, no tabs) and quotes"
        ) from error


def _plain(path: Path, node: yaml.Node | None) -> tuple[dict[str, Any], dict[tuple[str, ...], int], list[_Finding]]:
    """Return the content, the line of each key, and keys that stand twice."""
    if node is None:
        return {}, {}, []
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}:1: the file holds no `key: value` lines; see configurations/quickstart.yaml")
    lines: dict[tuple[str, ...], int] = {}
    findings: list[_Finding] = []
    for key, line, is_new in _keys(node, ()):
        if is_new:
            lines[key] = line
        else:
            findings.append(_Finding(line, f"{path}:{line}: {'.'.join(key)}: stands twice; keep one of them"))
    try:
        content = yaml.SafeLoader("").construct_document(node)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if any(not isinstance(key, str) for key in content):
        wrong = next(key for key in content if not isinstance(key, str))
        raise InputError(f"{path}: keys are words; found {wrong!r}; put it in quotes if it is meant")
    return content, lines, findings


def _keys(node: yaml.MappingNode, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int, bool]]:
    seen: set[str] = set()
    for key_node, value in node.value:
        key = (*above, str(key_node.value))
        yield key, key_node.start_mark.line + 1, key[-1] not in seen
        seen.add(key[-1])
        if isinstance(value, yaml.MappingNode):
            yield from _keys(value, key)


def _override(content: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise InputError(f"--set {override}: found no KEY=VALUE; write for instance --set sae.lr=1e-3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not valid YAML ({error})") from error
    *sections, last = key.strip().split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {section} is no section; it has no key {last}")
        content = inner
    content[last] = value


def _describe(path: Path, lines: dict[tuple[str, ...], int], problem: Any, overrides: Sequence[str]) -> _Finding:
    location = tuple(str(part) for part in problem["loc"])
    keys = _key_part(location)
    name = ".".join(keys) or "the file"
    line = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), 0)
    overridden = next((f"--set {each}" for each in overrides if each.partition("=")[0].strip() == name), None)
    where = overridden or (f"{path}:{line}" if line else str(path))
    if problem["type"] == "extra_forbidden":
        allowed = _allowed(keys[:-1])
        near = difflib.get_close_matches(keys[-1], allowed, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
        return _Finding(line, f"{where}: {name}: unknown key; {hint}")
    found = problem["input"]
    shown = f"found {found!r}; " if not isinstance(found, dict) else ""
    return _Finding(line, f"{where}: {name}: {shown}{_what_is_allowed(problem)}{_nearest(problem)}")


def _key_part(location: tuple[str, ...]) -> tuple[str, ...]:
    """Return the keys of a location, without pydantic's union members and list positions."""
    keys: list[str] = []
    for part in location:
        allowed = _allowed(tuple(keys))
        if not allowed or (keys and part not in allowed and part.isdigit()):
            break
        keys.append(part)
    return tuple(keys)


def _allowed(section: tuple[str, ...]) -> list[str]:
    model: Any = Config
    for key in section:
        field = model.model_fields.get(key)
        model = None if field is None else field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
    return list(model.model_fields)


def _what_is_allowed(problem: Any) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _nearest(problem: Any) -> str:
    found, expected = problem["input"], problem.get("ctx", {}).get("expected", "")
    names = re.findall(r"'([^']+)'", str(expected))
    near = difflib.get_close_matches(str(found), names, n=1) if isinstance(found, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def stage_names() -> tuple[str, ...]:
    """Return the names of the stages in order."""
    return tuple(Stage)


assert get_args(Literal["auto"]) == ("auto",)
