"""Read a refusal direction that was found elsewhere, in the published layout.

A folder holds `direction.pt`, one vector of d_model numbers, and `direction_metadata.json` with `pos`, counted from the
end, and `layer`: the direction is of the residual stream *before* block `layer`, that is after block `layer - 1`.
Source: Arditi et al. 2406.11717, whose code writes these files.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from refusal.directions.formats import DIRECTION, METADATA, read_direction
from refusal.errors import InputError
from refusal.models import ChatModel
from refusal.sites import Site, SiteKind
from refusal.untrusted import shown
from refusal.usable_text import local_path

FILES = (DIRECTION, METADATA)


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


def given_direction(folder: str, model: ChatModel) -> GivenDirection:
    """Return the direction of a folder.

    Raises:
        InputError: A file is missing, is not of this form, or does not fit the model.
    """
    root = local_path(folder)
    direction, position, layer = read_given(folder)
    if len(direction) != model.d_model:
        raise InputError(
            f"patching.direction: {root / DIRECTION}: found {len(direction)} numbers; {model.name} needs "
            f"{model.d_model}; use a direction of this model"
        )
    if not layer < model.n_layers:
        raise InputError(
            f"patching.direction: {root / METADATA}: layer is {shown(layer)}; {model.name} has layers 0 to "
            f"{model.n_layers - 1}; use a direction of this model"
        )
    return GivenDirection(direction.double(), position, layer)


def read_given(folder: str) -> tuple[Float[Tensor, " d_model"], int, int]:
    """Return direction, position and layer of a folder, whatever the model.

    Raises:
        InputError: A file is missing, or is not of this form.
    """
    root = local_path(folder)
    missing = [name for name in FILES if not (root / name).exists()]
    if missing:
        raise InputError(
            f"patching.direction: {root}: no {' and no '.join(missing)}; allowed is a folder with {' and '.join(FILES)}"
        )
    try:
        return read_direction(root)
    except InputError as error:
        raise InputError(f"patching.direction: {error}") from error
