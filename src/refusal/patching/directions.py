"""Which refusal direction a model's patching takes: the configured one, or else that which the directions stage chose.

Where there is neither, the difference in means of the pairs serves, at whichever site it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusal.artefacts import ResultPaths, sha256_file
from refusal.config import Config
from refusal.directions.candidates import Direction
from refusal.directions.formats import DIRECTION, METADATA, read_direction
from refusal.directions.schemas import MADE_BY
from refusal.errors import ArtefactError, InputError
from refusal.models import ChatModel
from refusal.sites import Site, SiteKind
from refusal.untrusted.files import shown


@dataclass(frozen=True)
class TakenDirection:
    """A direction with where it comes from."""

    direction: Direction
    source: str
    """The file, and the place that it was read at, in words."""
    digest: str
    """Checksum of its files."""

    @property
    def site(self) -> Site:
        """The residual state that it acts on: of the embeddings' directions the first."""
        return Site(SiteKind.RESIDUALS, max(0, self.direction.layer))


def direction_files(config: Config, model: str, paths: ResultPaths) -> tuple[Path, ...]:
    """Return the files of the direction that a model's patching takes; none where it takes the difference in means."""
    configured = config.patching.direction
    folder = paths.directions(model) if configured is None else Path(configured).expanduser()
    files = folder / DIRECTION, folder / METADATA
    return files if all(path.is_file() for path in files) else ()


def check_direction(config: Config) -> None:
    """Raise if the configured direction cannot be read.

    Raises:
        InputError: Names the key, the file and what is wrong with it.
    """
    if config.patching.direction is not None:
        _configured(config.patching.direction)


def taken_direction(config: Config, model: ChatModel, paths: ResultPaths) -> TakenDirection | None:
    """Return the direction that a model's patching takes; None: the difference in means.

    Raises:
        InputError: The configured direction cannot be read, or does not fit the model.
        ArtefactError: The same of the one that the directions stage chose.
    """
    configured = config.patching.direction
    files = direction_files(config, model.name, paths)
    if configured is None and not files:
        return None
    if configured is not None:
        direction, folder = _configured(configured, model), Path(configured)
    else:
        direction, folder = _chosen(files[0].parent, model), files[0].parent.relative_to(paths.root)
    place = f"position {direction.position}, layer {direction.layer + 1} as published"
    digest = " ".join(sha256_file(path) for path in files)
    return TakenDirection(direction, f"{(folder / DIRECTION).as_posix()} ({place})", digest)


def _configured(folder: str, model: ChatModel | None = None) -> Direction:
    try:
        return _read(Path(folder).expanduser(), model)
    except InputError as error:
        raise InputError(f"patching.direction: {error}") from error


def _chosen(folder: Path, model: ChatModel) -> Direction:
    try:
        return _read(folder, model)
    except InputError as error:
        raise ArtefactError(f"{error}; make it anew with: {MADE_BY} --force directions") from error


def _read(folder: Path, model: ChatModel | None) -> Direction:
    direction = read_direction(folder)
    if model is None:
        return direction
    if len(direction.raw) != model.d_model:
        raise InputError(
            f"{folder / DIRECTION}: found {len(direction.raw)} numbers; {model.name} has d_model {model.d_model}; use "
            "a direction of this model"
        )
    if direction.layer + 1 >= model.n_layers:
        raise InputError(
            f"{folder / METADATA}: layer is {shown(direction.layer + 1)}; {model.name} has layers 0 to "
            f"{model.n_layers - 1}; use a direction of this model"
        )
    return direction
