"""What removing and inducing circuits does at one site: transfer, own necessity and sufficiency, under resampling.

1. Transfer T_AB = (E_AB - R_B) / (E_BB - R_B): the share of B's own effect that A's circuit has on B, less what random
   sets of the same size do. Own necessity N_B = (E_BB - R_B) / (m refused - m complied).
2. Sufficiency: what inducing A's circuit does to B's complied prompts, as a share of m refused - m complied. It tells a
   site that carries decisions from one that carries evidence.
3. Resampling: prompts within categories and folds, a fold's circuit for each category, SAE seeds as the outer level.

Pure functions of arrays: no model, no files. Statistics run in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from refusal.sites import Site
from refusal.stats import bootstrap_weights

MIN_SUFFICIENCY = 0.1
"""Share of m refused - m complied that inducing another category's circuit must restore, mean over pairs, for a site to
carry decisions."""
MIN_SUFFICIENCY_RATIO = 0.85
"""What it must restore as a share of what the prompt's own category's circuit does: a decision needs nothing else to be
acted on, evidence (an intent) works only beside the rest of its own category's evidence (a topic)."""
STRICT_SUFFICIENCY, STRICT_SUFFICIENCY_RATIO = 0.5, 0.9
"""The same for a site of the residual stream to decide. There evidence and decisions lie side by side and a circuit can
mix them; the neurons that write the decision are units of what is decided, of which a few induce less."""


@dataclass(frozen=True)
class SiteEffects:
    """Effects measured at one site; each prompt's by circuits that were found on the other fold."""

    site: Site
    effect: Float[np.ndarray, "seed category prompt"]
    """Effect of removing each category's circuit on each refused prompt, logits."""
    random: Float[np.ndarray, "seed prompt"]
    """Mean effect of random sets matched on size and activation frequency, logits."""
    induced: Float[np.ndarray, "category complied"]
    """Effect of inducing each category's circuit in each complied prompt, first SAE seed, logits."""


@dataclass(frozen=True)
class RefusedPrompts:
    """The refused prompts on which effects are measured."""

    category: Int[np.ndarray, " prompt"]
    """Index of each prompt's category."""
    fold: Int[np.ndarray, " prompt"]
    """0 or 1; a prompt's effects are those of circuits found on the other fold."""

    @property
    def n_categories(self) -> int:
        """Number of categories."""
        return int(self.category.max()) + 1

    def rows(self, fold: int, category: int) -> Int[np.ndarray, " _"]:
        """Return the places of the prompts of a category and of a fold."""
        return np.flatnonzero((self.category == category) & (self.fold == fold))


@dataclass(frozen=True)
class Resampling:
    """Bootstrap weights of prompts, circuits and SAE seeds."""

    prompts: Float[np.ndarray, "draw prompt"]
    """How often each prompt is drawn; sums to the number of prompts within each category and fold."""
    circuits: Float[np.ndarray, "draw fold category"]
    """Share of the circuits measured on each fold in what stands for each category's circuit; sums to 1 over folds."""
    seeds: Float[np.ndarray, "draw seed"]
    """Share of each seed; rows sum to 1."""


def resample(prompts: RefusedPrompts, n_seeds: int, n_draws: int, generator: np.random.Generator) -> Resampling:
    """Return weights that draw prompts within each category and fold, a fold's circuit for each category, and seeds.

    Other prompts give other circuits as well. Of two independent halves a draw takes one for each category, which has
    the variance of their mean: E[(x0 - x1)^2 / 4] = var(x) / 2. Of n seeds a draw takes n - 1 with replacement, for the
    same reason: n would have (n - 1) / n of the variance of their mean, two thirds with three seeds.

    Sources: Davison & Hinkley (1997), section 3.8 (hierarchical data: resample the outer level, then within it);
    McCarthy (1969), doi:10.2307/1402116 (half-samples of two units a stratum); Rao & Wu (1988),
    J. Am. Stat. Assoc. 83, 231 (samples of n - 1).
    """
    strata = 2 * prompts.category + prompts.fold
    drawn = bootstrap_weights(len(strata), n_draws, generator, strata=strata)
    fold = generator.integers(2, size=(n_draws, prompts.n_categories))
    circuits = np.stack([fold == 0, fold == 1], axis=1).astype(float)
    n_drawn = max(1, n_seeds - 1)
    seeds = generator.multinomial(n_drawn, np.full(n_seeds, 1 / n_seeds), size=n_draws) / n_drawn
    return Resampling(drawn, circuits, seeds)


def plain_weights(prompts: RefusedPrompts, n_seeds: int, fold: int | None = None) -> Resampling:
    """Return the weights of the data as it is, or as measured on one fold: one draw, every prompt once, seeds alike."""
    share = np.full(2, 0.5) if fold is None else np.eye(2)[fold]
    circuits = np.repeat(share[None, :, None], prompts.n_categories, axis=2)
    return Resampling(np.ones((1, len(prompts.category))), circuits, np.full((1, n_seeds), 1 / n_seeds))


@dataclass(frozen=True)
class SiteTransfer:
    """Transfer and necessity at one site, for each draw."""

    site: Site
    transfer: Float[np.ndarray, "draw category category"]
    """[d, A, B]: T_AB; nan in column B where E_BB - R_B is not above 0."""
    necessity: Float[np.ndarray, "draw category"]
    """N_B, unclipped."""
    cross: Float[np.ndarray, "draw category"]
    """Mean over A != B of (E_AB - R_B) / (m refused - m complied) of B."""
    random: Float[np.ndarray, "draw category"]
    """R_B as a share of m refused - m complied of B."""

    def mean_transfer(
        self, usable: Bool[np.ndarray, " category"], negative: Bool[np.ndarray, "category category"] | None = None
    ) -> Float[np.ndarray, " draw"]:
        """Return the mean off-diagonal transfer onto the usable categories, per draw; nan where none was measured.

        A negative transfer counts as 0: a circuit whose removal strengthens another category's refusal shares nothing
        with it, and takes nothing from what other pairs share.

        Args:
            usable: Categories onto which transfer counts.
            negative: Pairs that count as 0 in every draw, so that draws scatter around the value of the data as they
                are; None: those that are negative in the draw itself.
        """
        pairs = ~np.eye(len(usable), dtype=bool) & usable[None, :]
        values = self.transfer[:, pairs]
        counted = np.isfinite(values)
        n = counted.sum(1)
        nothing = values < 0 if negative is None else negative[pairs][None, :]
        shared = np.where(counted & ~nothing, values, 0.0)
        return np.asarray(np.where(n > 0, shared.sum(1) / np.maximum(n, 1), np.nan))


def site_transfer(
    effects: SiteEffects,
    gap: Float[np.ndarray, " category"],
    prompts: RefusedPrompts,
    weights: Resampling,
) -> SiteTransfer:
    """Return transfer and necessity at a site under each draw's weights.

    Args:
        effects: Measured effects; `prompt` axis as `category`.
        gap: m refused - m complied of each category, logits.
        prompts: The refused prompts; each category has some in both folds.
        weights: Bootstrap draws, or `plain_weights`.
    """
    n = effects.effect.shape[1]
    effect, random = np.zeros((2, len(weights.prompts), n, n))
    measured = np.concatenate([effects.effect, effects.random[:, None]], axis=1)
    for fold, category in np.ndindex(2, n):
        # mean over the draw's prompts of the category, for each seed, then over the draw's seeds.
        rows = prompts.rows(fold, category)
        drawn = weights.prompts[:, rows]
        by_seed = np.tensordot(drawn / drawn.sum(1, keepdims=True), measured[:, :, rows], (1, 2))
        mean = np.einsum("dsa,ds->da", by_seed, weights.seeds)
        share = weights.circuits[:, fold]
        effect[:, :, category] += share * mean[:, :n]
        random[:, :, category] += share * mean[:, n:]
    above = effect - random
    own = np.einsum("daa->da", above)
    with np.errstate(divide="ignore", invalid="ignore"):
        transfer = np.where(own[:, None, :] > 0, above / own[:, None, :], np.nan)
    cross = (above.sum(1) - own) / max(n - 1, 1)
    return SiteTransfer(effects.site, transfer, own / gap, cross / gap, np.einsum("daa->da", random) / gap)


@dataclass(frozen=True)
class Sufficiency:
    """What inducing circuits does to complied prompts, as a share of m refused - m complied; the mean, per draw."""

    own: Float[np.ndarray, " draw"]
    """Circuits of the prompt's own category."""
    cross: Float[np.ndarray, " draw"]
    """Circuits of other categories."""

    @property
    def carries_decisions(self) -> bool:
        """Whether the site carries decisions and not only evidence, by the first draw (the data as they are)."""
        return self._reaches(MIN_SUFFICIENCY, MIN_SUFFICIENCY_RATIO)

    @property
    def is_strict(self) -> bool:
        """Whether it does so by the limits for sites of the residual stream."""
        return self._reaches(STRICT_SUFFICIENCY, STRICT_SUFFICIENCY_RATIO)

    def _reaches(self, share: float, ratio: float) -> bool:
        own, cross = float(self.own[0]), float(self.cross[0])
        return cross >= share and cross >= ratio * own


def sufficiency(
    effects: SiteEffects,
    gap: Float[np.ndarray, " category"],
    category: Int[np.ndarray, " complied"],
    weights: Float[np.ndarray, "draw complied"],
) -> Sufficiency:
    """Return what inducing A's circuit does to B's complied prompts, for A = B and for A != B.

    Args:
        effects: Measured effects.
        gap: m refused - m complied of each category, logits.
        category: Index of each complied prompt's category.
        weights: How often each complied prompt is drawn.
    """
    n = len(effects.induced)
    means = np.empty((len(weights), n, n))
    for index in range(n):
        rows = np.flatnonzero(category == index)
        drawn = weights[:, rows]
        means[:, :, index] = drawn / drawn.sum(1, keepdims=True) @ effects.induced[:, rows].T
    share = means / gap
    return Sufficiency(np.einsum("daa->d", share) / n, share[:, ~np.eye(n, dtype=bool)].mean(1))
