"""What `auto` means for an SAE: named rules that return a value and the reason for it.

Rules were set by the study in METHOD.md's terms: width by held-out FVU, sparsity by agreement between seeds, since
held-out FVU always prefers more active latents while seeds then find different ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from refusal.config import SaeConfig
from refusal.sae.trainer import Recipe

T = TypeVar("T", int, float)

ROWS_PER_LATENT = 4
"""Training rows for each latent."""
MIN_LATENTS = 8
MAX_LATENTS_PER_DIMENSION = 4
"""Latents for each dimension of the activations, at most."""
MAX_BATCH = 1024
MIN_STEPS_PER_EPOCH = 4
"""An epoch has at least this many steps, so that small data give small batches."""
MAX_EPOCHS = 500
MIN_STEPS = 1000
MAX_STEPS = 20_000


@dataclass(frozen=True)
class Auto(Generic[T]):
    """A resolved value and why it is what it is."""

    value: T
    reason: str


@dataclass(frozen=True)
class Resolved:
    """A recipe without `auto`, and the reason for each of its values."""

    recipe: Recipe
    reasons: dict[str, str]


def auto_d_sae(n_rows: int, d_model: int) -> Auto[int]:
    """Return the number of latents for `n_rows` training rows of width `d_model`; a multiple of 8.

    >>> auto_d_sae(900, 64).value
    224
    """
    most = MAX_LATENTS_PER_DIMENSION * d_model
    value = max(MIN_LATENTS, min(most, n_rows // ROWS_PER_LATENT) // 8 * 8)
    return Auto(value, f"one latent per {ROWS_PER_LATENT} of the {n_rows} training rows, at most {most} (4 d_model)")


def auto_k(d_sae: int, d_model: int) -> Auto[int]:
    """Return the number of active latents: low, because too many make seeds disagree.

    >>> auto_k(256, 64).value, auto_k(2048, 4096).value
    (6, 32)
    """
    value = max(1, min(32, d_sae // 4, round(1.5 * d_model**0.5 / 2)))
    return Auto(value, "0.75 sqrt(d_model), 1 to 32 and at most d_sae / 4: when unsure low, too high hurts more")


def auto_batch_size(n_rows: int) -> Auto[int]:
    """Return the rows per step.

    >>> auto_batch_size(900).value, auto_batch_size(10**6).value
    (225, 1024)
    """
    value = max(1, min(MAX_BATCH, n_rows // MIN_STEPS_PER_EPOCH))
    return Auto(value, f"a quarter of the {n_rows} training rows, at most {MAX_BATCH}")


def auto_steps(n_rows: int, batch_size: int) -> Auto[int]:
    """Return the steps at most; training stops earlier once held-out FVU no longer falls.

    >>> auto_steps(900, 225).value, auto_steps(10**6, 1024).value
    (2000, 20000)
    """
    value = max(MIN_STEPS, min(MAX_STEPS, MAX_EPOCHS * n_rows // batch_size))
    return Auto(value, f"{MAX_EPOCHS} passes over the rows, {MIN_STEPS} to {MAX_STEPS}, with early stopping")


def auto_lr(d_sae: int) -> Auto[float]:
    """Return Adam's learning rate in normalised space.

    >>> auto_lr(224).value, auto_lr(16384).value
    (0.002, 0.0005)
    """
    value = 2e-3 * min(1.0, (1024 / d_sae) ** 0.5)
    return Auto(value, "0.002, above 1,024 latents falling with the root of their number")


def resolve(config: SaeConfig, n_rows: int, d_model: int) -> Resolved:
    """Return the recipe for `n_rows` training rows of width `d_model`.

    A configured batch that is larger than the data shrinks to the data.
    """
    reasons: dict[str, str] = {}

    def settle(name: str, configured: str | T, automatic: Auto[T]) -> T:
        if isinstance(configured, str):
            reasons[name] = f"auto: {automatic.reason}"
            return automatic.value
        reasons[name] = "as configured"
        return configured

    d_sae = settle("d_sae", config.d_sae, auto_d_sae(n_rows, d_model))
    k = settle("k", config.k, auto_k(d_sae, d_model))
    batch_size = settle("batch_size", config.batch_size, auto_batch_size(n_rows))
    if batch_size > n_rows:
        reasons["batch_size"] = f"configured as {batch_size}, shrunk to the {n_rows} training rows there are"
        batch_size = n_rows
    steps = settle("steps", config.steps, auto_steps(n_rows, batch_size))
    lr = settle("lr", config.lr, auto_lr(d_sae))
    return Resolved(Recipe(d_sae=d_sae, k=k, steps=steps, batch_size=batch_size, lr=lr), reasons)
