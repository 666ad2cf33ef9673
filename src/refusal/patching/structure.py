"""Do categories decide with the same neurons? Attributions over MLP neurons, category by category.

Every patch of a whole layer looks alike in a model with one mechanism and in one with a mechanism per category:
whichever is switched on, the model refuses. What differs is *which neurons* do it. At the readout position each neuron
of a layer's MLP has an attribution to m (integrated gradients from the corrupted to the clean run); a_i is its mean
over the pairs of category i, a_i^1 and a_i^2 those of two halves. Agreement of two categories, over that of two halves
of one:

    S_ij = (<a_i^1, a_j^2> + <a_i^2, a_j^1>) / 2 / sqrt(<a_i^1, a_i^2> <a_j^1, a_j^2>)

1: the same neurons; 0: others. Halves are drawn several times and the products averaged. Source: the
correction for attenuation, Spearman 1904; `circuits.similarity` does the same for latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import Generator
from torch import Tensor

from refusal.patching.runs import PairRuns
from refusal.patching.units import Side
from refusal.readout import Edit
from refusal.sites import Site
from refusal.stats import Estimate, nan_mean, percentile_interval

MIN_IN_CATEGORY = 4
"""Pairs of a category, below which halves mean nothing."""
N_SPLITS = 6
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
    """Mean of S_ij over two different categories; bootstrap over pairs."""


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


@dataclass(frozen=True)
class Halves:
    """Weights that average halves of each category's pairs; drawn once, the same for every site."""

    names: tuple[str, ...]
    """Categories with enough pairs."""
    rows: tuple[Int[np.ndarray, " _"], ...]
    """Pairs of each."""
    plain: Float[np.ndarray, "split half category pair"]
    resampled: Float[np.ndarray, "draw split half category pair"]
    """The same with each category's pairs drawn with replacement, once for all splits of a draw."""


def draw_halves(categories: Sequence[str], generator: Generator) -> Halves | None:
    """Return halves of every category with enough pairs; None with fewer than two such categories."""
    found = {name: np.flatnonzero([each == name for each in categories]) for name in sorted(set(categories))}
    rows = {name: own for name, own in found.items() if name and len(own) >= MIN_IN_CATEGORY}
    if len(rows) < 2:
        return None
    n = len(categories)
    plain = np.zeros((N_SPLITS, 2, len(rows), n))
    resampled = np.zeros((N_DRAWS, N_SPLITS, 2, len(rows), n))
    for category, own in enumerate(rows.values()):
        _halve(plain[:, :, category], own, np.ones(len(own)), generator)
        for draw in range(N_DRAWS):
            _halve(resampled[draw][:, :, category], own, _times_drawn(len(own), generator), generator)
    return Halves(tuple(rows), tuple(rows.values()), plain, resampled)


def _times_drawn(n: int, generator: Generator) -> Float[np.ndarray, " own"]:
    """Return how often each of n pairs is drawn with replacement; at least two different ones are."""
    while True:
        counts = np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)
        if np.count_nonzero(counts) > 1:
            return counts


def _halve(
    weights: Float[np.ndarray, "split half pair"],
    rows: Int[np.ndarray, " own"],
    counts: Float[np.ndarray, " own"],
    generator: Generator,
) -> None:
    """Write the weights of random halves; a pair that was drawn twice is in one half twice, never in both."""
    drawn = np.flatnonzero(counts)
    for split in range(len(weights)):
        order = generator.permutation(drawn)
        for half in (0, 1):
            chosen = order[half::2]
            weights[split, half, rows[chosen]] = counts[chosen] / counts[chosen].sum()


def agreement(site: Site, attributions: Float[np.ndarray, "pair neuron"], halves: Halves) -> Agreement:
    """Return how alike the categories' attributions are.

    Args:
        site: Where they were measured.
        attributions: One row a pair.
        halves: Halves of the categories' pairs.
    """
    gram = attributions @ attributions.T
    products, lengths = _products(gram, halves.plain)
    ceiling = np.diag(products) / lengths
    normalised = _normalised(products, ceiling)
    drawn, _ = _products(gram, halves.resampled)
    is_usable = np.where(ceiling >= LEAST_CEILING, 1.0, 0.0)
    draws = np.array([_mean_of_others(_normalised(each, is_usable)) for each in drawn])
    value = _mean_of_others(normalised)
    n = sum(map(len, halves.rows))
    mean = percentile_interval(value if np.isfinite(value) else None, draws, n, method="bootstrap over pairs")
    average = np.stack([np.isin(np.arange(len(gram)), rows) / len(rows) for rows in halves.rows])
    inner = average @ gram @ average.T
    norms = np.sqrt(np.maximum(np.diag(inner), 1e-300))
    return Agreement(site, halves.names, inner / np.outer(norms, norms), ceiling, normalised, mean)


def _products(
    gram: Float[np.ndarray, "pair pair"], weights: Float[np.ndarray, "*draw split half category pair"]
) -> tuple[Float[np.ndarray, "*draw category category"], Float[np.ndarray, "*draw category"]]:
    """Return (<a_i^1, a_j^2> + <a_i^2, a_j^1>) / 2 and |a_i^1| |a_i^2|, means over splits.

    Every number comes from the inner products of pairs, so the number of neurons costs nothing here.
    """
    projected = weights @ gram
    first, second = weights[..., 0, :, :], weights[..., 1, :, :]
    crossed = projected[..., 0, :, :] @ np.swapaxes(second, -1, -2)
    own = [(projected[..., half, :, :] * each).sum(-1) for half, each in enumerate((first, second))]
    products = (crossed + np.swapaxes(crossed, -1, -2)) / 2
    return products.mean(-3), np.sqrt(np.maximum(own[0] * own[1], 1e-300)).mean(-2)


def _normalised(
    products: Float[np.ndarray, "category category"], ceiling: Float[np.ndarray, " category"]
) -> Float[np.ndarray, "category category"]:
    """Return S_ij; nan where a ceiling is too low or a category's halves disagree."""
    own = np.diag(products)
    usable = np.where((ceiling >= LEAST_CEILING) & (own > 0), own, np.nan)
    return np.asarray(products / np.sqrt(usable[:, None] * usable[None, :]))


def _mean_of_others(normalised: Float[np.ndarray, "category category"]) -> float:
    return nan_mean(normalised[~np.eye(len(normalised), dtype=bool)])
