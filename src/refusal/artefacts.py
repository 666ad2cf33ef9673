"""Every file of a result folder: where it lies, what it is called and how it is written safely.

The content of the JSON files is in `refusal.schemas`; the activations are `refusal.store`'s, the SAEs `refusal.sae`'s.
Nothing is ever half written: `atomic_write` writes beside the target, syncs and renames.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from refusal.errors import ArtefactError
from refusal.sites import Site

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST = 150


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode())


def safe_name(name: str) -> str:
    """Return `name` as a file name: readable, reversible (`unsafe_name`), never the same for two names.

    `/` becomes `__`; whatever else is not a letter, digit, `.`, `_` or `-` is percent-encoded. Names that would exceed
    150 characters are cut and end in a hash of the whole (those alone are not reversible).

    >>> safe_name("meta-llama/Llama-2-7b-chat-hf"), safe_name("a__b"), safe_name("..")
    ('meta-llama__Llama-2-7b-chat-hf', 'a%5F%5Fb', '%2E.')
    """
    escaped = _UNSAFE.sub(lambda m: "/" if m.group() == "/" else _escape(m), name)
    # A run of underscores, or one beside a slash, could be read as a slash: escape it.
    escaped = re.sub(r"__+|(?<=/)_+|_+(?=/)", lambda m: "%5F" * len(m.group()), escaped).replace("/", "__")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if len(escaped) > _LONGEST:
        escaped = f"{escaped[: _LONGEST - 17]}%{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return escaped


def unsafe_name(file_name: str) -> str:
    """Return the name that `safe_name` made `file_name` of.

    >>> unsafe_name(safe_name("planted/modular"))
    'planted/modular'
    """
    return unquote(file_name.replace("__", "/"))


def safe_category(category: str) -> str:
    """Return `category` as a part of a file name that holds no `_`, so that MODEL_CATEGORY can be split again."""
    return safe_name(category.replace("/", "\N{DIVISION SLASH}")).replace("_", "%5F")


@dataclass(frozen=True)
class ResultPaths:
    """Where each artefact of a result folder lies. `model` and `category` are the names as configured."""

    root: Path

    def activations(self, model: str) -> Path:
        """Return the folder of the activation store."""
        return self.root / "activations" / safe_name(model)

    def refusal_labels(self, model: str) -> Path:
        """Return the file that says what the model did on each prompt."""
        return self.root / "refusal_labels" / f"{safe_name(model)}.json"

    def model_outputs(self, model: str) -> Path:
        """Return the file with the responses."""
        return self.root / "model_outputs" / f"{safe_name(model)}.json"

    def evaluation(self, model: str) -> Path:
        """Return the file with refusal, over-refusal and compliance rates."""
        return self.root / "evaluation_results" / f"{safe_name(model)}.json"

    def saes(self, model: str) -> Path:
        """Return the folder with all SAEs of a model."""
        return self.root / "saes" / safe_name(model)

    def sae(self, model: str, site: Site, seed: int | None = None) -> Path:
        """Return the folder of one SAE; `seed=None` is the first seed of the configuration."""
        folder = self.saes(model) / site.name
        return folder if seed is None else folder / f"seed_{seed}"

    def attributions(self, model: str) -> Path:
        """Return the file with per-prompt attributions and mean gradients (safetensors)."""
        return self.root / "circuits" / f"{safe_name(model)}_attributions.safetensors"

    def effects(self, model: str) -> Path:
        """Return the file with per-prompt effects of the interventions (safetensors)."""
        return self.root / "circuits" / f"{safe_name(model)}_effects.safetensors"

    def circuit(self, model: str, category: str) -> Path:
        """Return the file of one category's circuit."""
        return self.root / "circuits" / f"{safe_name(model)}_{safe_category(category)}_circuit.json"

    def comparison(self, model: str) -> Path:
        """Return the file with the comparison and the verdict."""
        return self.root / "circuits" / f"{safe_name(model)}_comparison.json"

    def directions(self, model: str) -> Path:
        """Return the folder of a model's refusal directions."""
        return self.root / "directions" / safe_name(model)

    def direction_plot(self, model: str, what: str, image_format: str = "png") -> Path:
        """Return a picture of a model's refusal directions; `what` it shows, e.g. `selection`."""
        return self.root / "visualizations" / f"{safe_name(model)}_directions_{what}.{image_format}"

    def circuit_plot(self, model: str, category: str, image_format: str = "png") -> Path:
        """Return the picture of one category's circuit."""
        return self.root / "visualizations" / f"{safe_name(model)}_{safe_category(category)}_circuit.{image_format}"

    def similarity_heatmap(self, model: str, image_format: str = "png") -> Path:
        """Return the picture of the category-by-category similarity."""
        return self.root / "visualizations" / f"{safe_name(model)}_similarity_heatmap.{image_format}"

    def depth_profile(self, model: str, image_format: str = "png") -> Path:
        """Return the picture of own and cross effects by depth."""
        return self.root / "visualizations" / f"{safe_name(model)}_depth_profile.{image_format}"

    def training_plot(self, model: str, site: Site, image_format: str = "png") -> Path:
        """Return the picture of the training of one site's SAEs."""
        return self.root / "visualizations" / f"{safe_name(model)}_{site.name}_training.{image_format}"

    @property
    def report_json(self) -> Path:
        """The report as one JSON file."""
        return self.root / "circuit_analysis_report.json"

    @property
    def summary(self) -> Path:
        """The one page that a person reads."""
        return self.root / "circuit_analysis_summary.txt"

    @property
    def html(self) -> Path:
        """The page that a person explores, offline."""
        return self.root / "report.html"

    @property
    def analysis_results(self) -> Path:
        """What `run_analysis.py` writes."""
        return self.root / "analysis_results.json"

    @property
    def disagreements(self) -> Path:
        """Responses on which detectors disagree, for a person to look at."""
        return self.root / "detector_disagreements.csv"

    @property
    def rates_figure(self) -> Path:
        """The OR-Bench table: categories by models."""
        return self.root / "visualizations" / "refusal_rates.png"

    @property
    def trade_off_figure(self) -> Path:
        """Safety against over-refusal, a point a model."""
        return self.root / "visualizations" / "safety_and_over_refusal.png"

    def judgements(self, model: str) -> Path:
        """Return the file in which a judge's verdicts are kept as they come, so that a killed run goes on there."""
        return self.root / "refusal_labels" / f"{safe_name(model)}.judged.jsonl"

    @property
    def manifest(self) -> Path:
        """Configuration as resolved, versions, seeds, hashes, time and memory."""
        return self.root / "run_manifest.json"

    def stage_record(self, stage: str, model: str | None = None) -> Path:
        """Return the record a unit of work leaves when it is complete; `model=None` for a stage over all models."""
        return self.root / "stages" / (f"{stage}.json" if model is None else f"{stage}_{safe_name(model)}.json")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is synced and takes the place of `path`, on error it goes.

    Readers see the old file or the new one, never a part. The folder is made. Source: rename(2) is atomic within a
    file system; the sync before it keeps the order across a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers derive the format from it.
    beside = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield beside
        with beside.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as UTF-8 JSON with sorted keys; what is not finite becomes null (JSON has no NaN)."""
    text = json.dumps(_finite(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, made_by: str) -> Any:
    """Return the content of a JSON artefact.

    Args:
        path: The file.
        made_by: The command that makes it, for the error message.

    Raises:
        ArtefactError: The file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: not found; make it with: {made_by}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}: not readable as JSON ({error}); delete it and run: {made_by}") from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
