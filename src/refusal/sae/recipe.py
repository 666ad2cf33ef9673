"""What decides a training besides its rows: the recipe, what of it can work, and its schedule of the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from refusal.errors import InputError

MAX_LATENTS_PER_ROW = 4
"""With more latents than this per training row, every row can have latents of its own."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training besides its rows and seed; all resolved, no `auto`."""

    d_sae: int
    """Number of latents."""
    k: int
    """Active latents per row: exactly (topk), on average over a batch, or what the sparsity term aims at."""
    steps: int
    """Steps at most."""
    batch_size: int
    """Rows per step."""
    lr: float
    """Adam's learning rate between warm-up and decay."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises to `lr`."""
    decay_share: float = 0.3
    """Share of the steps in which it falls to 0, at the end."""
    auxk_coefficient: float = 1 / 32
    """alpha of the AuxK term; 0 switches it off."""
    dead_rows: int = 2000
    """A latent is dead when it was not active on so many rows of training. Soon, so that AuxK also reaches latents that
    fire by accident now and then: on 60,000 rows this recovers up to a fifth more features than two epochs do."""
    n_evaluations: int = 30
    """Evaluations over the whole training."""
    architecture: str = "topk"
    """A key of `objectives.OBJECTIVES`."""
    patience: int = 12
    """Evaluations without a better held-out FVU after which an SAE is done."""
    matmul_dtype: str = "float32"
    """Precision of the matrix products of a step, float32 or bfloat16; weights and evaluations are in float32."""


def check_recipe(recipe: Recipe, n_rows: int) -> None:
    """Raise if a recipe cannot work on `n_rows` training rows.

    Raises:
        InputError: Names the key of the configuration, what it is and what is allowed.
    """
    if recipe.k > recipe.d_sae:
        raise InputError(f"sae.k: is {recipe.k}, allowed are 1 to d_sae = {recipe.d_sae}; lower it or set it to auto")
    if recipe.d_sae > MAX_LATENTS_PER_ROW * n_rows:
        raise InputError(
            f"sae.d_sae: is {recipe.d_sae}, but there are only {n_rows} rows to train on; allowed are at most "
            f"{MAX_LATENTS_PER_ROW} latents per row ({MAX_LATENTS_PER_ROW * n_rows}), sensible is one per 16 rows; set "
            "sae.d_sae: auto or raise num_samples_per_category"
        )


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of a step in [0, steps): linear warm-up, constant, linear decay to (almost) 0."""
    rise = (step + 1) / max(1.0, recipe.warmup_share * recipe.steps)
    fall = (recipe.steps - step) / max(1.0, recipe.decay_share * recipe.steps)
    return recipe.lr * min(1.0, rise, fall)
