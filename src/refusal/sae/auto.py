"""What `auto` means for an SAE: named rules that return a value and the reason for it.

The rules come from measurements on planted models and on data made of known features, at 1,000 to 60,000 rows:

- width: at a given k, held-out FVU and recovery of true features are best together at about 16 rows per latent; with
  fewer an SAE learns its rows by heart, and seeds share nothing;
- k: held-out FVU always prefers more, agreement between seeds does not: too many cost more than too few;
- batch: small batches regularise. At 2,000 rows, 64 instead of 256 a step took held-out FVU from .49 to .38 and the
  share of true features found from .36 to .7;
- learning rate: Adam moves every entry by about lr, and entries of a unit row are 1 / sqrt(d_model).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from refusal.config import SaeConfig
from refusal.sae.recipe import Recipe

T = TypeVar("T", int, float)

ROWS_PER_LATENT = 16
MIN_LATENTS = 16
MAX_LATENTS = 16_384
MAX_LATENTS_PER_DIMENSION = 8
STEPS_PER_EPOCH = 32
MIN_BATCH = 32
MAX_BATCH = 1024
EPOCHS = 100
MIN_STEPS = 3_000
MAX_STEPS = 20_000
BY_ROWS = ("d_sae", "batch_size", "steps")
"""Settings that follow the number of rows."""
LR = 8e-3
LR_UP_TO_WIDTH = 256
LR_UP_TO_LATENTS = 4_096


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


def independent_rows(n_prompts: int, n_rows: int) -> int:
    """Return how many rows the rows at all positions of some prompts count for: the geometric mean of both numbers.

    Rows of one prompt tell much of the same. Latents for all of them took five times as long, and seeds agreed no
    better; as few as for the prompts alone left the readout worse off than without. Measured in docs/decisions/0006.

    >>> independent_rows(900, 8100), independent_rows(900, 900)
    (2700, 900)
    """
    return round(math.sqrt(n_prompts * n_rows))


def auto_d_sae(n_rows: int, d_model: int) -> Auto[int]:
    """Return the number of latents for `n_rows` training rows of width `d_model`, a multiple of 8.

    >>> auto_d_sae(900, 64).value, auto_d_sae(10**6, 64).value
    (56, 512)
    """
    most = min(MAX_LATENTS, MAX_LATENTS_PER_DIMENSION * d_model)
    value = max(MIN_LATENTS, min(most, round(n_rows / ROWS_PER_LATENT / 8) * 8))
    return Auto(value, f"one latent per {ROWS_PER_LATENT} of the {n_rows} training rows, {MIN_LATENTS} to {most}")


def auto_k(d_sae: int, d_model: int) -> Auto[int]:
    """Return the number of active latents.

    >>> auto_k(56, 64).value, auto_k(2048, 4096).value
    (4, 32)
    """
    value = max(1, min(d_sae // 4, round(d_model**0.5 / 2)))
    return Auto(value, "half the root of d_model, at most d_sae / 4; when unsure low: too many make seeds disagree")


def auto_batch_size(n_rows: int) -> Auto[int]:
    """Return the rows per step, a power of 2.

    >>> auto_batch_size(900).value, auto_batch_size(10**6).value
    (32, 1024)
    """
    wanted = 2 ** math.ceil(math.log2(max(1.0, n_rows / STEPS_PER_EPOCH)))
    value = min(max(MIN_BATCH, min(MAX_BATCH, wanted)), n_rows)
    return Auto(value, f"1/{STEPS_PER_EPOCH} of the {n_rows} training rows, {MIN_BATCH} to {MAX_BATCH}")


def auto_steps(n_rows: int, batch_size: int) -> Auto[int]:
    """Return the steps at most; training stops earlier once held-out FVU no longer falls.

    >>> auto_steps(900, 32).value, auto_steps(10**6, 1024).value
    (3000, 20000)
    """
    value = max(MIN_STEPS, min(MAX_STEPS, EPOCHS * n_rows // batch_size))
    return Auto(value, f"{EPOCHS} passes over the training rows, {MIN_STEPS} to {MAX_STEPS}, with early stopping")


def auto_lr(d_sae: int, d_model: int) -> Auto[float]:
    """Return Adam's learning rate in normalised space.

    >>> auto_lr(56, 64).value, auto_lr(2048, 4096).value
    (0.008, 0.002)
    """
    value = LR * min(1.0, (LR_UP_TO_WIDTH / d_model) ** 0.5) * min(1.0, (LR_UP_TO_LATENTS / d_sae) ** 0.5)
    reason = f"{LR:g}, falling with the root of d_model above {LR_UP_TO_WIDTH} and of d_sae above {LR_UP_TO_LATENTS}"
    return Auto(value, reason)


def resolve(config: SaeConfig, n_rows: int, d_model: int, n_prompts: int | None = None) -> Resolved:
    """Return the recipe for `n_rows` training rows of width `d_model`.

    A configured batch that is larger than the data shrinks to the data.

    Args:
        config: What is configured.
        n_rows: Training rows.
        d_model: Their width.
        n_prompts: How many prompts they are of; None: each of its own.
    """
    reasons: dict[str, str] = {}
    counted = n_rows if n_prompts is None else independent_rows(n_prompts, n_rows)
    how = "" if n_prompts is None else f"; {n_rows} rows of {n_prompts} prompts count as {counted}"

    def settle(name: str, configured: str | T, automatic: Auto[T]) -> T:
        """Return the configured value, or the automatic one, and note why."""
        if isinstance(configured, str):
            reasons[name] = f"auto: {automatic.reason}{how if name in BY_ROWS else ''}"
            return automatic.value
        reasons[name] = "as configured"
        return configured

    d_sae = settle("d_sae", config.d_sae, auto_d_sae(counted, d_model))
    k = settle("k", config.k, auto_k(d_sae, d_model))
    batch_size = settle("batch_size", config.batch_size, auto_batch_size(counted))
    if batch_size > n_rows:
        reasons["batch_size"] = f"configured as {batch_size}, shrunk to the {n_rows} training rows there are"
        batch_size = n_rows
    steps = settle("steps", config.steps, auto_steps(counted, batch_size))
    lr = settle("lr", config.lr, auto_lr(d_sae, d_model))
    recipe = Recipe(
        d_sae=d_sae,
        k=k,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        architecture=config.architecture,
        matmul_dtype=config.matmul_dtype,
    )
    return Resolved(recipe, reasons)
