"""Read a refusal direction that was found elsewhere, in the published layout.

A folder holds `direction.pt`, one vector of d_model numbers, and `direction_metadata.json` with `pos`, counted from the
end, and `layer`: the direction is of the residual stream *before* block `layer`, that is after block `layer - 1`.
Source: Arditi et al. 2406.11717, whose code writes these files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from refusal.errors import InputError
from refusal.models import ChatModel
from refusal.sites import Site, SiteKind
from refusal.untrusted import READ_ERRORS, first_line, json_file, torch_file

FILES = ("direction.pt", "direction_metadata.json")


@dataclass(frozen=True)
class GivenDirection:
    """A direction with where it belongs."""

    direction: Float[Tensor, " d_model"]
    position: int
    layer: int
    """Block before which it was read."""

    @property
    def site(self) -> Site:
        """The residual state it belongs to: before block 0 there is none, so that one goes after it."""
        return Site(SiteKind.RESIDUALS, max(0, self.layer - 1))


def require_files(folder: str) -> Path:
    """Return the folder, once it holds what it should.

    Raises:
        InputError: A file is missing.
    """
    root = Path(folder).expanduser()
    missing = [name for name in FILES if not (root / name).is_file()]
    if missing:
        raise InputError(
            f"patching.direction: {root}: no {' and no '.join(missing)}; allowed is a folder with {' and '.join(FILES)}"
        )
    return root


def given_direction(folder: str, model: ChatModel) -> GivenDirection:
    """Return the direction of a folder.

    Raises:
        InputError: A file is missing, is not of this form, or does not fit the model.
    """
    root = require_files(folder)
    where = f"patching.direction: {root}"
    try:
        metadata = json_file(root / FILES[1])
        position, layer = int(metadata["pos"]), int(metadata["layer"])
    except (OSError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}/{FILES[1]}: found no numbers pos and layer ({error}); write both as JSON") from error
    try:
        direction = torch_file(root / FILES[0])
    except READ_ERRORS as error:
        raise InputError(f"{where}/{FILES[0]}: is no tensor file that is safe to read ({first_line(error)})") from error
    if not isinstance(direction, Tensor) or direction.shape != (model.d_model,) or not bool(direction.isfinite().all()):
        found = tuple(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise InputError(
            f"{where}/{FILES[0]}: found {found}; {model.name} needs {model.d_model} finite numbers; use a direction of "
            "this model"
        )
    if not 0 <= layer < model.n_layers:
        raise InputError(f"{where}/{FILES[1]}: layer is {layer}; {model.name} has layers 0 to {model.n_layers - 1}")
    if not bool(direction.any()):
        raise InputError(f"{where}/{FILES[0]}: all numbers are 0; that is no direction")
    return GivenDirection(direction.double(), position, layer)
