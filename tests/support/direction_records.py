"""Records of directions of made-up models, for what is said and drawn of them."""

from __future__ import annotations

from functools import cache

import numpy as np
from made_directions import NAMES, layers

from refusal.directions.geometry import GeometryOptions, direction_geometry
from refusal.directions.geometry_records import LayerGeometry, LayerTransfer
from refusal.directions.transfer import TransferEffects, layer_transfer

FEW_DRAWS = GeometryOptions(draws=60, jackknife_groups=4)


@cache
def geometry(groups: int, n_layers: int = 3, n_categories: int = 6) -> tuple[LayerGeometry, ...]:
    """Return the geometry of categories that share directions in so many groups."""
    return direction_geometry(*layers(groups, n_layers, n_categories), FEW_DRAWS)


def transfer(inside: float, groups: int, layer: int = 1, necessity: float = 0.9, n: int = 6) -> LayerTransfer:
    """Return a transfer of `inside` between categories of a group and 0 between groups, with a little noise."""
    generator = np.random.default_rng(0)
    category = np.repeat(np.arange(n), 10)
    same = (np.arange(n)[:, None] - np.arange(n)[None, :]) % groups == 0
    matrix = np.where(same, inside, 0.0)
    np.fill_diagonal(matrix, 1.0)
    effect = 5.0 * necessity * matrix[:, category] + 0.05 * generator.normal(size=(n, len(category)))
    effects = TransferEffects(
        effect, np.zeros(len(category)), np.full(len(category), 3.0), category, np.tile([0, 1], 5 * n), np.full(n, 5.0)
    )
    return layer_transfer(effects, layer, NAMES[:n], "made up", n_draws=100)
