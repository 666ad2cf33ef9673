"""How good an SAE is: reconstruction, sparsity, agreement between seeds. Pure functions; sums in float64.

Ratios are ratios of sums over all rows with the mean of all rows, never means of ratios by batch.
Source: Paulo & Belrose 2501.16615 and Song et al. 2505.20254 (matching of decoder rows between seeds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from refusal.sae.base import SparseAutoencoder
from refusal.sae.rows import RowSource

MATCHED = 0.7
"""Decoder cosine above which two latents count as the same."""
DUPLICATE = 0.9
"""Decoder cosine above which two latents of one SAE do the same."""
DENSE = 0.5
"""A latent that is active on more than this share of rows is dense."""
CHUNK_ROWS = 2048
"""Rows encoded at once."""


@dataclass(frozen=True)
class Quality:
    """How an SAE does on some rows."""

    n_rows: int
    """Rows looked at."""
    fvu: float
    """Fraction of variance unexplained: 0 perfect, 1 no better than the mean."""
    l0: float
    """Mean number of active latents."""
    dead_share: float
    """Share of latents never active on these rows."""
    dense_share: float
    """Share of latents active on more than half of them."""
    fvu_by_category: dict[str, float]
    """Mean squared error of a category's rows over the variance of all rows; weighted by n they average to `fvu`."""
    frequency: Float[Tensor, " d_sae"]
    """Share of the rows on which each latent is active."""

    @property
    def explained_variance(self) -> float:
        """1 - FVU; negative when the SAE is worse than the mean."""
        return 1.0 - self.fvu


def fvu(acts: Float[Tensor, "row d_model"], reconstruction: Float[Tensor, "row d_model"]) -> float:
    """Return the fraction of variance unexplained: sum (x - x_hat)^2 / sum (x - mean)^2 over all rows.

    NaN when all rows are the same.

    >>> fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
    0.5
    """
    x, x_hat = acts.double(), reconstruction.double()
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def reconstruction_bias(acts: Float[Tensor, "row d_model"], reconstruction: Float[Tensor, "row d_model"]) -> float:
    """Return the relative reconstruction bias |x_hat|^2 / (x . x_hat), both less the mean of `acts`; sums over rows.

    Below 1 reconstructions are too short (shrinkage), above 1 too long. The mean is taken out because a large one,
    which the decoder's bias gives for nothing, would hide both.
    Source: Rajamanoharan et al. 2404.16014; as SAEBench (2503.09532) computes it, but centred.

    >>> reconstruction_bias(torch.tensor([[-2.0], [2.0]]), torch.tensor([[-1.0], [1.0]]))
    0.5
    """
    mean = acts.double().mean(0)
    x, x_hat = acts.double() - mean, reconstruction.double() - mean
    return float(x_hat.square().sum() / (x * x_hat).sum())


def duplicate_share(decoder: Float[Tensor, "d_sae d_model"]) -> float:
    """Return the share of latents that have another one with a decoder cosine above 0.9.

    >>> duplicate_share(torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]))
    0.5
    """
    rows = torch.nn.functional.normalize(decoder.detach().double(), dim=-1)
    n_close = 0
    for part in torch.split(rows, CHUNK_ROWS):
        # Each row is close to itself.
        n_close += int(((part @ rows.T > DUPLICATE).sum(1) > 1).sum())
    return n_close / len(rows)


@torch.no_grad()
def quality(sae: SparseAutoencoder, source: RowSource, rows: Int[Tensor, " row"], categories: Sequence[str]) -> Quality:
    """Return how an SAE does on some rows of a source, at least one.

    Args:
        sae: The SAE.
        source: Where the rows are.
        rows: Their numbers.
        categories: The category of each of `rows`.
    """
    parts = list(torch.split(rows, CHUNK_ROWS))
    mean = torch.stack([source.take(part).double().sum(0) for part in parts]).sum(0) / len(rows)
    active = torch.zeros(sae.d_sae, dtype=torch.float64)
    errors, spread = [], 0.0
    for part in parts:
        acts = source.take(part)
        output = sae.forward(acts)
        active += (output.latents > 0).sum(0)
        errors.append(output.error.double().square().sum(1))
        spread += float((acts.double() - mean).square().sum())
    error = torch.cat(errors)
    by_category = {
        name: float(error[[each == name for each in categories]].mean() / (spread / len(rows)))
        for name in sorted(set(categories))
    }
    frequency = active / len(rows)
    return Quality(
        n_rows=len(rows),
        fvu=float(error.sum() / spread),
        l0=float(frequency.sum()),
        dead_share=float((frequency == 0).double().mean()),
        dense_share=float((frequency > DENSE).double().mean()),
        fvu_by_category=by_category,
        frequency=frequency,
    )


@dataclass(frozen=True)
class Stability:
    """How well the latents of one SAE are found again in another, matched one to one by decoder cosine.

    Independent trainings that found the same dictionary give 1 throughout; unrelated ones about the largest cosine of
    random directions. Rare latents match worse, so both figures are also given weighted by frequency.
    """

    mean_cosine: float
    """Mean cosine over matched pairs."""
    matched_share: float
    """Share of pairs with cosine above 0.7."""
    weighted_mean_cosine: float | None
    """Mean cosine weighted by frequency; None when no latent is ever active."""
    weighted_matched_share: float | None
    """Share above 0.7 weighted by frequency."""


def matched_cosines(
    first: Float[Tensor, "d_sae d_model"], second: Float[Tensor, "d_sae d_model"]
) -> Float[Tensor, " d_sae"]:
    """Return for each row of `first` its cosine with the row of `second` that the best one-to-one matching gives it.

    The matching maximises the sum of cosines (Hungarian method).

    >>> matched_cosines(torch.eye(2), torch.tensor([[0.0, 2.0], [1.0, 0.0]])).tolist()
    [1.0, 1.0]
    """
    a, b = (torch.nn.functional.normalize(rows.detach().double(), dim=-1) for rows in (first, second))
    cosines = (a @ b.T).cpu().numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return torch.from_numpy(np.ascontiguousarray(cosines[rows, columns]))


def stability(
    first: Float[Tensor, "d_sae d_model"],
    second: Float[Tensor, "d_sae d_model"],
    frequency: Float[Tensor, " d_sae"],
) -> Stability:
    """Return how well the decoder rows of `first` are found again in `second`.

    Args:
        first: Decoder of one SAE.
        second: Decoder of the same shape, from an independent start.
        frequency: How often each latent of `first` is active.
    """
    cosines = matched_cosines(first, second)
    is_same = (cosines > MATCHED).double()
    total = frequency.double().sum()
    weights = frequency.double() / total if float(total) > 0 else None
    return Stability(
        mean_cosine=float(cosines.mean()),
        matched_share=float(is_same.mean()),
        weighted_mean_cosine=None if weights is None else float(weights @ cosines),
        weighted_matched_share=None if weights is None else float(weights @ is_same),
    )
