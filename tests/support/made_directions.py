"""Activations of made-up categories whose refusal directions are known."""

from __future__ import annotations

import numpy as np

from refusal.directions.products import Sides

NAMES = ("ash", "birch", "cedar", "date", "elm", "fir", "gum", "hazel", "iris", "jade")


def sides(n_categories: int, n_side: int) -> Sides:
    """Return categories with equally many prompts on each side: refused first."""
    category = np.repeat(np.arange(n_categories), 2 * n_side)
    is_refused = np.tile(np.repeat([True, False], n_side), n_categories)
    return Sides(category, is_refused, NAMES[:n_categories])


def along(directions: np.ndarray, n_side: int, generator: np.random.Generator) -> np.ndarray:
    """Return prompts in unit noise whose differences in means are rows of `directions`, about a common mean."""
    sign = np.tile(np.repeat([0.5, -0.5], n_side), len(directions))[:, None]
    rows = np.repeat(directions, 2 * n_side, axis=0) * sign
    return rows + generator.normal(size=rows.shape) + 7.0


def two(cosine: float, n_side: int, d_model: int, generator: np.random.Generator, size: float = 2.0) -> np.ndarray:
    """Return two categories whose true directions have a given cosine."""
    directions = np.zeros((2, d_model))
    directions[0, 0] = size
    directions[1, :2] = size * cosine, size * np.sqrt(1 - cosine**2)
    return along(directions, n_side, generator)


def of_rank(rank: int, seed: int, n_side: int = 30, size: float = 4.0) -> np.ndarray:
    """Return ten categories of 64 dimensions whose directions span `rank` dimensions evenly."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(64, rank)))[0].T
    mix = np.eye(rank)[np.arange(10) % rank]
    return along(size * mix @ basis, n_side, generator)


def layers(groups: int, n_layers: int = 3, n_categories: int = 6, n_side: int = 12) -> tuple[np.ndarray, Sides]:
    """Return activations [prompt, layer, d_model] ; every `groups`-th category shares a direction."""
    generator = np.random.default_rng(groups)
    directions = 9.0 * np.eye(40)[np.arange(n_categories) % groups]
    acts = np.stack([along(directions, n_side, generator) for _ in range(n_layers)], axis=1)
    return acts, sides(n_categories, n_side)
