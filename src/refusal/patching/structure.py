"""Do categories decide with the same neurons? Attributions over MLP neurons, category by category.

Every patch of a whole layer looks alike in a model with one mechanism and in one with a mechanism per category: whichever
is switched on, the model refuses. What differs is *which neurons* do it. At the readout position each neuron of a
layer's MLP has an attribution to m (integrated gradients from the corrupted to the clean run); a_i is its mean over the
pairs of category i, a_i^1 and a_i^2 those of two halves. Agreement of two categories, over what two halves of one agree:

    S_ij = (<a_i^1, a_j^2> + <a_i^2, a_j^1>) / 2 / sqrt(<a_i^1, a_i^2> <a_j^1, a_j^2>)

1: the same neurons; 0: others. Halves are drawn several times and the products averaged. Source: METHOD of the project's
structural similarity (`circuits.similarity`); the correction for attenuation is Spearman 1904.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from refusal.patching.runs import PairRuns
from refusal.patching.units import Side
from refusal.readout import Edit
from refusal.sites import Site
from refusal.stats import Estimate, nan_mean, percentile_interval

MIN_IN_CATEGORY = 4
"""Pairs of a category, below which halves mean nothing."""
N_SPLITS = 20
N_DRAWS = 200
LEAST_CEILING = 0.2
"""Cosine of a category's halves, below which nothing is said of it."""


@dataclass(frozen=True)
class Agreement:
    """How alike the categories' attributions at a site are."""

    site: Site
    categories: tuple[str, ...]
    raw: Float[np.ndarray, "category category"]
    """Cosine of the categories' mean attributions."""
    ceiling: Float[np.ndarray, " category"]
    """Cosine of two halves of a category, mean over splits."""
    normalised: Float[np.ndarray, "category category"]
    """S_ij; nan where a ceiling is too low."""
    mean: Estimate
    """Mean of S_ij over two different categories; bootstrap over pairs within halves."""


def neuron_attributions(runs: PairRuns, site: Site, n_steps: int) -> Float[np.ndarray, "pair neuron"]:
    """Return what each neuron contributes to m(clean) - m(corrupted) at the readout position, per pair, in logits.

    Args:
        runs: The pairs.
        site: A `neurons_N` site.
        n_steps: Points of the path from the corrupted to the clean neurons in the corrupted run, at least 1.
    """
    clean, corrupted = (runs.readout(side, [site])[site] for side in (Side.CLEAN, Side.CORRUPTED))
    change = clean - corrupted
    gradient = torch.zeros_like(change)
    alphas = (torch.arange(n_steps) + 0.5) / n_steps
    for batch in runs.runner[Side.CORRUPTED].batches(range(len(runs))):
        rows = batch.prompts.cpu()
        path = corrupted[rows] + alphas[:, None, None] * change[rows]
        leaf = path.to(runs.model.device).requires_grad_()

        def put(acts: Tensor, leaf: Tensor = leaf) -> Tensor:
            """Put the points of the path in."""
            return leaf.to(acts)

        with torch.enable_grad():
            m = runs.metric(batch.run(n_steps, [Edit(site, put)]).logits.float()).sum()
            (found,) = torch.autograd.grad(m, leaf)
        gradient[rows] = found.mean(0).float().cpu()
    return (change * gradient).double().numpy()


def agreement(
    site: Site, attributions: Float[np.ndarray, "pair neuron"], categories: Sequence[str], generator: Generator
) -> Agreement | None:
    """Return how alike the categories' attributions are; None with fewer than two categories that have enough pairs.

    Args:
        site: Where they were measured.
        attributions: One row a pair.
        categories: Category of each pair.
        generator: Draws the halves.
    """
    rows = {name: np.flatnonzero([each == name for each in categories]) for name in sorted(set(categories))}
    names = tuple(name for name, found in rows.items() if name and len(found) >= MIN_IN_CATEGORY)
    if len(names) < 2:
        return None
    splits = [_products(attributions, rows, names, generator) for _ in range(N_SPLITS)]
    products, lengths = (np.mean([each[part] for each in splits], axis=0) for part in (0, 1))
    ceiling = np.diag(products) / lengths
    normalised = _normalised(products, ceiling)
    draws = []
    for _ in range(N_DRAWS):
        drawn, _ = _products(attributions, rows, names, generator, resample=True)
        draws.append(_mean_of_others(_normalised(drawn, np.where(ceiling >= LEAST_CEILING, 1.0, 0.0))))
    value = _mean_of_others(normalised)
    n = sum(len(rows[name]) for name in names)
    mean = percentile_interval(value if np.isfinite(value) else None, np.array(draws), n, method="bootstrap over pairs")
    means = np.stack([attributions[rows[name]].mean(0) for name in names])
    norms = np.linalg.norm(means, axis=1)
    raw = means @ means.T / np.maximum(norms[:, None] * norms[None, :], 1e-300)
    return Agreement(site, names, raw, ceiling, normalised, mean)


def _products(
    attributions: Float[np.ndarray, "pair neuron"],
    rows: dict[str, np.ndarray],
    names: Sequence[str],
    generator: Generator,
    *,
    resample: bool = False,
) -> tuple[Float[np.ndarray, "category category"], Float[np.ndarray, " category"]]:
    """Return (<a_i^1, a_j^2> + <a_i^2, a_j^1>) / 2 and |a_i^1| |a_i^2| of one split, pairs resampled within halves."""
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name in names:
        order = generator.permutation(rows[name])
        for half, means in enumerate(halves):
            chosen = order[half::2]
            chosen = generator.choice(chosen, len(chosen)) if resample else chosen
            means.append(attributions[chosen].mean(0))
    first, second = (np.stack(half) for half in halves)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first @ second.T + second @ first.T) / 2, np.maximum(lengths, 1e-300)


def _normalised(
    products: Float[np.ndarray, "category category"], ceiling: Float[np.ndarray, " category"]
) -> Float[np.ndarray, "category category"]:
    """Return S_ij; nan where a ceiling is too low or a category's halves disagree."""
    own = np.diag(products)
    usable = np.where((ceiling >= LEAST_CEILING) & (own > 0), own, np.nan)
    return products / np.sqrt(usable[:, None] * usable[None, :])


def _mean_of_others(normalised: Float[np.ndarray, "category category"]) -> float:
    return nan_mean(normalised[~np.eye(len(normalised), dtype=bool)])
