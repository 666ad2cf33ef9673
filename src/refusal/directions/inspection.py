"""What a folder of published directions holds, as numbers: norms, cosines over layers, and whether its files agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from refusal.directions.formats import EVALUATIONS, MEAN_DIFFS, Published, read_evaluations, read_published
from refusal.directions.schemas import Candidate, Filters
from refusal.directions.selection import choose
from refusal.errors import InputError
from refusal.untrusted.files import shown

PUBLISHED_FILTERS = Filters(max_depth=0.8, max_kl=0.1, min_induce=0.0)
NEGLIGIBLE = 1e-9
"""Share of the largest norm below which a difference in means is rounding, and has no direction."""


@dataclass(frozen=True)
class Inspection:
    """The numbers of a folder."""

    published: Published
    norms: Float[np.ndarray, "pos layer"]
    cosines: Float[np.ndarray, "pos layer"]
    """With the selected direction; nan where the difference in means is but rounding."""
    selected: tuple[int, int] | None
    """Position and layer that the published filters select from the scores beside the files; None without scores."""

    @property
    def agrees(self) -> bool:
        """Whether the filters select what the metadata says."""
        return self.selected == (self.published.pos, self.published.layer)


def inspect(folder: Path) -> Inspection:
    """Return the numbers of a folder in the published layout.

    Raises:
        InputError: A file is missing or damaged, or the files do not fit together.
    """
    published = read_published(folder)
    candidates = published.mean_diffs.double().numpy()
    unit = published.direction.double().numpy()
    unit = unit / np.linalg.norm(unit)
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(candidates, axis=-1)
    if not np.isfinite(norms).all():
        raise InputError(f"{folder / MEAN_DIFFS}: some numbers are too large for a length; make the file anew")
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.where(norms > NEGLIGIBLE * norms.max(), candidates @ unit / norms, np.nan)
    return Inspection(published, norms, cosines, _selected(folder, published))


def _selected(folder: Path, published: Published) -> tuple[int, int] | None:
    path = folder / EVALUATIONS
    if not path.exists():
        return None
    scored = [_candidate(entry) for entry in read_evaluations(path)]
    n_positions, n_layers, _ = published.mean_diffs.shape
    for index, each in enumerate(scored):
        if not -n_positions <= each.position < 0 or not 0 <= each.published_layer < n_layers:
            raise InputError(
                f"{path}: entry {index}: found position {shown(each.position)}, layer {shown(each.published_layer)}; "
                f"allowed are positions -{n_positions} to -1 and layers 0 to {n_layers - 1}, as mean_diffs.pt has"
            )
    if all(each.bypass is None for each in scored):
        raise InputError(f"{path}: no entry has a refusal_score that is a number; get the file anew, or remove it")
    index, _ = choose(scored, published.mean_diffs.shape[1], PUBLISHED_FILTERS)
    return scored[index].position, scored[index].published_layer


def _candidate(entry: dict[str, Any]) -> Candidate:
    return Candidate(
        position=entry["position"],
        layer=entry["layer"] - 1,
        published_layer=entry["layer"],
        ablate_to="zero",
        norm=0.0,
        bypass=entry["refusal_score"],
        bypass_ci=(None, None),
        bypass_published=entry["refusal_score"],
        induce=entry["steering_score"],
        induce_ci=(None, None),
        induce_published=entry["steering_score"],
        kl=entry["kl_div_score"],
        kl_ci=(None, None),
        left_out=(),
    )
