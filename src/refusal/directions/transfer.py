"""Transfer of directions: take one category's direction away and see what is left of every category's refusals.

1. Directions are differences in means of one fold's prompts; effects are measured on the refused prompts of the other.
2. E_AB = m(B refused) - m(B refused | A's direction taken away), in logits; R_B the same with random unit directions.
3. T_AB = (E_AB - R_B) / (E_BB - R_B), where B's own necessity N_B = (E_BB - R_B) / (m refused - m complied) holds:
   the statistic of the circuits' verdict, with a direction in the place of a circuit. T is not symmetric.

How a direction is taken away is the caller's business (`Ablate`): this module gives it unit vectors and rows, and gets
m. One that acts at the readout position is in `readout_ablation`; those that act everywhere, in `refusal.steering`.
Source: directional ablation, Arditi et al. arXiv 2406.11717 section 2.4; transfer as in `circuits.verdict`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from refusal.directions.geometry_records import LayerTransfer
from refusal.directions.products import Sides, differences, off_diagonal_mean
from refusal.measures import as_matrix, interval_matrix
from refusal.schemas import Measure
from refusal.stats import bootstrap_weights, percentile_interval

MIN_NECESSITY = 0.1
"""Own necessity (lower end of its interval) that a category needs for transfer onto it to be given."""
N_RANDOM = 16
"""Random directions of the control."""


class Ablate(Protocol):
    """Measures m without a direction: the parameter of `measure_transfer`."""

    def __call__(
        self,
        units: Float[np.ndarray, "direction d_model"],
        levels: Float[np.ndarray, "direction prompt"],
        prompts: Int[np.ndarray, " prompt"],
    ) -> Float[np.ndarray, "direction prompt"]:
        """Return the refusal metric of each prompt when each direction is taken away, in logits.

        Args:
            units: Unit vectors; each is an intervention of its own.
            levels: Projection that the direction has, on average, on the complied prompts of each prompt's category:
                what an ablation to the counterfactual sets it to. An ablation to zero ignores it.
            prompts: Rows of the prompts.
        """


@dataclass(frozen=True)
class TransferEffects:
    """What taking directions away does, each prompt by directions that did not see it; logits."""

    effect: Float[np.ndarray, "category prompt"]
    """[a, p]: m(p) - m(p | a's direction taken away)."""
    random: Float[np.ndarray, " prompt"]
    """Mean over random directions."""
    metric: Float[np.ndarray, " prompt"]
    """m(p) with nothing taken away."""
    category: Int[np.ndarray, " prompt"]
    fold: Int[np.ndarray, " prompt"]
    """0 or 1: the directions were found on the other one."""
    gap: Float[np.ndarray, " category"]
    """m refused - m complied of each category."""


def measure_transfer(
    acts: Float[np.ndarray, "prompt d_model"],
    sides: Sides,
    metric: Float[np.ndarray, " prompt"],
    ablate: Ablate,
    *,
    seed: int = 0,
    n_random: int = N_RANDOM,
) -> TransferEffects:
    """Return the effects of taking each category's direction away on the refused prompts of all categories.

    Args:
        acts: Activations at one layer and the readout position, one row per prompt.
        sides: Category and side of each prompt; at least four on each side.
        metric: m of each prompt as it is, logits.
        ablate: How a direction is taken away.
        seed: Draws the folds and the random directions.
        n_random: Random directions of the control.
    """
    acts = np.asarray(acts, dtype=np.float64)
    fold = sides.folds(2, np.random.default_rng([seed, 5]))
    refused = np.flatnonzero(sides.is_refused)
    effect, random = np.zeros((sides.n_categories, len(sides))), np.zeros(len(sides))
    for half in (0, 1):
        found_on = np.flatnonzero(fold == half)
        judged = refused[fold[refused] != half]
        units = _units(differences(acts[found_on], sides.subset(found_on)))
        drawn = _units(np.random.default_rng([seed, 6, half]).normal(size=(n_random, acts.shape[1])))
        everything = np.concatenate([units, drawn])
        levels = everything @ _complied_means(acts, sides, fold == half)[sides.category[judged]].T
        change = metric[judged] - ablate(everything, levels, judged)
        effect[:, judged], random[judged] = change[: len(units)], change[len(units) :].mean(0)
    gap = [
        metric[sides.rows(i, refused=True)].mean() - metric[sides.rows(i, refused=False)].mean()
        for i in range(sides.n_categories)
    ]
    return TransferEffects(
        effect[:, refused], random[refused], metric[refused], sides.category[refused], fold[refused], np.array(gap)
    )


def _units(vectors: Float[np.ndarray, "direction d_model"]) -> Float[np.ndarray, "direction d_model"]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1.0))


def _complied_means(
    acts: Float[np.ndarray, "prompt d_model"], sides: Sides, chosen: Bool[np.ndarray, " prompt"]
) -> Float[np.ndarray, "category d_model"]:
    rows = [sides.rows(i, refused=False) for i in range(sides.n_categories)]
    return np.stack([acts[of_category[chosen[of_category]]].mean(0) for of_category in rows])


# From effects to transfer --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Means:
    """Means over each category's prompts under weights, less random; per draw."""

    above: Float[np.ndarray, "draw category category"]
    """E_AB - R_B."""
    random: Float[np.ndarray, "draw category"]

    @property
    def own(self) -> Float[np.ndarray, "draw category"]:
        """E_BB - R_B."""
        return np.asarray(np.einsum("daa->da", self.above))

    @property
    def transfer(self) -> Float[np.ndarray, "draw category category"]:
        """T_AB; nan where the own effect is not above that of random directions."""
        own = np.where(self.own > 0, self.own, np.nan)
        return np.asarray(self.above / own[:, None, :])


@dataclass(frozen=True)
class _Resampling:
    """Weights of prompts, and which fold's direction stands for each category."""

    prompts: Float[np.ndarray, "draw prompt"]
    directions: Float[np.ndarray, "draw fold category"]
    """Share of the directions judged on each fold; sums to 1 over folds."""


def _resample(effects: TransferEffects, n_draws: int, generator: np.random.Generator) -> _Resampling:
    """Return draws of prompts within category and fold, and of one fold's direction for each category.

    Other prompts give other directions as well: of two independent halves a draw takes one, which has the variance of
    their mean. Source: McCarthy 1969, doi:10.2307/1402116 (half-samples of two units a stratum).
    """
    strata = 2 * effects.category + effects.fold
    prompts = bootstrap_weights(len(strata), n_draws, generator, strata=strata)
    fold = generator.integers(2, size=(n_draws, len(effects.effect)))
    return _Resampling(prompts, np.stack([fold == 0, fold == 1], axis=1).astype(float))


def _as_is(effects: TransferEffects, fold: int | None = None) -> _Resampling:
    """Return one draw: the prompts as they are, of both folds or judged on one."""
    share = np.full(2, 0.5) if fold is None else np.eye(2)[fold]
    return _Resampling(np.ones((1, len(effects.fold))), np.repeat(share[None, :, None], len(effects.effect), axis=2))


def _means(effects: TransferEffects, weights: _Resampling) -> _Means:
    n = len(effects.effect)
    above, random = np.zeros((len(weights.prompts), n, n)), np.zeros((len(weights.prompts), n))
    for fold in (0, 1):
        members = ((effects.category[:, None] == np.arange(n)) & (effects.fold == fold)[:, None]).astype(float)
        mean = weights.prompts[:, :, None] * members
        mean = mean / mean.sum(1, keepdims=True)
        control = np.einsum("p,dpb->db", effects.random, mean)
        share = weights.directions[:, fold]
        effect = np.einsum("ap,dpb->dab", effects.effect, mean, optimize=True)
        above += share[:, :, None] * (effect - control[:, None, :])
        random += share * control
    return _Means(above, random)


def layer_transfer(
    effects: TransferEffects,
    layer: int,
    categories: Sequence[str],
    intervention: str,
    *,
    n_draws: int = 1000,
    seed: int = 0,
) -> LayerTransfer:
    """Return the transfer matrix of one layer with bootstrap intervals over prompts.

    Args:
        effects: Measured effects.
        layer: Where the directions were read.
        categories: Names, in the order of the effects.
        intervention: How directions were taken away, in words.
        n_draws: Bootstrap draws of prompts and directions.
        seed: Decides them.
    """
    n_prompts = len(effects.category)
    weights = _resample(effects, n_draws, np.random.default_rng([seed, 7]))
    point, draws = _means(effects, _as_is(effects)), _means(effects, weights)
    necessity, drawn = point.own / effects.gap, draws.own / effects.gap
    counts = np.bincount(effects.category, minlength=len(categories))
    own = [percentile_interval(float(necessity[0, i]), drawn[:, i], int(counts[i])) for i in range(len(categories))]
    holds = np.array([each.low is not None and each.low >= MIN_NECESSITY for each in own])
    folds = [_means(effects, _as_is(effects, half)) for half in (0, 1)]
    transfer, drawn_transfer = (np.where(holds, each.transfer, np.nan) for each in (point, draws))
    by_fold = [as_matrix(np.where(holds, each.transfer[0], np.nan), categories) for each in folds]
    mean = percentile_interval(float(off_diagonal_mean(transfer)[0]), off_diagonal_mean(drawn_transfer), n_prompts)
    random = percentile_interval(
        float((point.random / effects.gap).mean()), (draws.random / effects.gap).mean(1), n_prompts
    )
    return LayerTransfer(
        layer=layer,
        intervention=intervention,
        transfer=as_matrix(transfer[0], categories),
        transfer_ci=interval_matrix(transfer[0], drawn_transfer, categories),
        transfer_folds=(by_fold[0], by_fold[1]),
        mean_transfer=Measure.of(mean),
        necessity={name: Measure.of(each) for name, each in zip(categories, own, strict=True)},
        random=Measure.of(random),
        refusals_left=as_matrix(_refusals_left(effects), categories),
    )


def _refusals_left(effects: TransferEffects) -> Float[np.ndarray, "category category"]:
    """Return the share of each category's refused prompts whose m stays above 0, for each direction taken away."""
    left = effects.metric - effects.effect > 0
    return np.stack([left[:, effects.category == b].mean(1) for b in range(len(effects.effect))], axis=1)
