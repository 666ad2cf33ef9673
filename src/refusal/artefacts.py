"""Every file of a result folder: where it lies, and how it is written and read safely.

The content of the JSON files is in `refusal.schemas`; the activations are `refusal.store`'s, the SAEs `refusal.sae`'s.
Nothing is ever half written: `atomic_write` writes beside the target, syncs and renames. Nothing that has changed since
is read as good: a JSON artefact holds a checksum of its own content (`write_sealed`, `read_sealed`); that of any other
file stands in the record of the stage that wrote it (`refusal.stages`), or in the file that names it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from refusal.errors import ArtefactError
from refusal.sites import Site
from refusal.untrusted.files import json_file
from refusal.untrusted.names import safe_category, safe_name

CHECKSUM = "checksum"
"""Key of a JSON artefact under which the checksum of all the others stands."""


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

    def patching(self, model: str) -> Path:
        """Return the folder with the maps, tables and reports of activation patching."""
        return self.root / "patching" / safe_name(model)

    def patching_comparison(self, first: str, second: str) -> Path:
        """Return the folder with the comparison of two models by activation patching."""
        return self.root / "patching" / "comparisons" / safe_name(first) / safe_name(second)

    def patching_plot(self, model: str, name: str, image_format: str = "png") -> Path:
        """Return a picture of activation patching; `name` says which, e.g. `heads`."""
        return self.root / "visualizations" / f"{safe_name(model)}_patching_{name}.{image_format}"

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


def this_host() -> str:
    """Return a short name of this machine, the same for all its processes."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is synced and takes the place of `path`, on error it goes.

    Readers see the old file or the new one, never a part. The folder is made. A link in the place of either is
    replaced, not followed. Source: rename(2) is atomic within a file system; the sync before it keeps the order across
    a power cut.

    Raises:
        OSError: It cannot be written (the disk is full, read-only ...); names the file, whoever wrote it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: some writers derive the format from it.
    beside = path.with_name(f".{os.getpid()}-{this_host()}.partial.{path.name}")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        with beside.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    finally:
        with suppress(OSError):  # on a disk that fails, what went wrong first is what is told
            beside.unlink(missing_ok=True)


def without_following(path: str, flags: int) -> int:
    """Open a file, but no link in its place: an `opener` for files that grow where they are."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as UTF-8 JSON with sorted keys; what is not finite becomes null (JSON has no NaN)."""
    text = json.dumps(_finite(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write text atomically as UTF-8; what UTF-8 cannot hold (lone surrogates) becomes `?`."""
    with atomic_write(path) as beside:
        beside.write_bytes(text.encode("utf-8", "replace"))


def read_json(path: Path, made_by: str) -> Any:
    """Return the content of a JSON artefact.

    Args:
        path: The file.
        made_by: The command that makes it, for the error message.

    Raises:
        ArtefactError: The file is missing or is no JSON.
    """
    try:
        return json_file(path)
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: not found; make it with: {made_by}") from error
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: not readable as JSON ({error}); delete it and run: {made_by}") from error


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as `write_json` does, with a checksum of its content in it."""
    finite = {key: _finite(value) for key, value in content.items() if key != CHECKSUM}
    write_json(path, finite | {CHECKSUM: _content_digest(finite)})


def read_sealed(path: Path, made_by: str) -> Any:
    """Return what `write_sealed` wrote, without its checksum; of a file that holds none nothing is checked.

    Args:
        path: The file.
        made_by: The command that makes it, for the error message.

    Raises:
        ArtefactError: The file is missing, is no JSON, or has changed since it was written.
    """
    content = read_json(path, made_by)
    if not isinstance(content, dict) or CHECKSUM not in content:
        return content
    found = content.pop(CHECKSUM)
    if found != _content_digest(content):
        raise ArtefactError(
            f"{path}: damaged or edited (its content does not fit the checksum in it); delete it and run: {made_by}"
        )
    return content


def _content_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
