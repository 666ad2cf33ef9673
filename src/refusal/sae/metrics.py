"""How good an SAE is: reconstruction on held-out prompts, sparsity, stability over seeds. Pure functions, float64."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from refusal.sae.base import SparseAutoencoder

MATCHED = 0.7
"""Decoder cosine above which two latents count as the same."""
DENSE = 0.5
"""Share of activations on which a dense latent is active."""


def fvu(acts: Float[Tensor, "prompt d_model"], reconstruction: Float[Tensor, "prompt d_model"]) -> float:
    """Return the fraction of variance unexplained: sum (x - x_hat)^2 / sum (x - mean)^2 over the whole set.

    0 = perfect, 1 = no better than the mean. One ratio of sums with the global mean, not a mean of ratios by batch.

    >>> fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
    0.5
    """
    x, x_hat = acts.double(), reconstruction.double()
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def sparsity(latents: Float[Tensor, "prompt d_sae"]) -> dict[str, float]:
    """Return L0 (mean active latents), the share of dead latents (never active) and of dense ones."""
    frequency = (latents > 0).double().mean(0)
    return {
        "l0": float((latents > 0).double().sum(1).mean()),
        "dead_share": float((frequency == 0).double().mean()),
        "dense_share": float((frequency > DENSE).double().mean()),
    }


def seed_stability(first: SparseAutoencoder, second: SparseAutoencoder) -> dict[str, float]:
    """Return how well the latents of two SAEs match one to one by decoder cosine.

    `mean_cosine` is the mean over the optimal assignment, `matched_share` the share above 0.7. Independent seeds that
    found the same dictionary give 1. Source: Paulo & Belrose 2501.16615.
    """
    a, b = (torch.nn.functional.normalize(sae.W_dec.double(), dim=-1) for sae in (first, second))
    cosine = (a @ b.T).numpy()
    rows, columns = linear_sum_assignment(-cosine)
    best = cosine[rows, columns]
    return {"mean_cosine": float(best.mean()), "matched_share": float(np.mean(best > MATCHED))}
