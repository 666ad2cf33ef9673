"""From measured effects to a verdict: transfer, depth anchors, groups, and what the evidence cannot carry.

1. Transfer T_AB = (E_AB - R_B) / (E_BB - R_B): the share of B's own effect that A's circuit has on B, less what random
   sets of the same size do. Own necessity N_B = (E_BB - R_B) / (m refused - m complied).
2. Only sites before commit count: from there on every model looks monolithic, because the output direction of a refusal
   is common to all categories. That is the sites of earlier blocks, and the MLP neurons of the blocks that write the
   decision: what they write is common, which of them write it is the question.
3. Only sites that carry decisions count: inducing any category's circuit in the complied prompts of another makes the
   model refuse. Before the decision a site carries evidence (words, intents); sharing that is not sharing a mechanism.
   An OR of separate detectors passes as well as one detector for all, so this condition favours no verdict.
4. Where neurons of those blocks qualify they decide, for there units are of the decision alone; else residual sites do.
   Neurons of the last block come after both: they write the answer's tokens, whoever decided.
   The decisive site is the most shared of those where own necessity holds; it is chosen on one fold and measured on the
   other.
5. The mean off-diagonal transfer there, with its bootstrap distribution, meets the thresholds. Stable groups that put
   most pairs together make MODULAR PARTIALLY MODULAR. UNDETERMINED, with the reason in words, when it cannot be
   measured, the distribution leans to no side, the groups contradict it otherwise, or it is MODULAR and a block before
   the last writes the decision, where no neurons were there to show that categories do not meet.

Pure functions of arrays: no model, no files. Statistics run in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from refusal.sites import Site, SiteKind
from refusal.stats import bootstrap_weights

MIN_MARGIN = 0.5
"""Median |m| in logits that refused and complied prompts must each have: below it the first token is a toss-up, and
which side a prompt falls on is noise, not a decision."""
MIN_NECESSITY = 0.1
"""Own necessity a category needs at a site before transfer is computed there, as a share of m refused - m complied."""
MIN_SHARE_NECESSARY = 0.8
"""Share of the categories whose own necessity must hold for a site to count."""
MIN_SUFFICIENCY = 0.1
"""Share of m refused - m complied that inducing another category's circuit must restore, mean over pairs, for a site to
carry decisions."""
MIN_SUFFICIENCY_RATIO = 0.85
"""What it must restore as a share of what the prompt's own category's circuit does: a decision needs nothing else to be
acted on, evidence (an intent) works only beside the rest of its own category's evidence (a topic)."""
STRICT_SUFFICIENCY, STRICT_SUFFICIENCY_RATIO = 0.5, 0.9
"""The same for a site of the residual stream to decide. There evidence and decisions lie side by side and a circuit can
mix them; the neurons that write the decision are units of what is decided, of which a few induce less."""
COMMIT_SHARE = 0.5
"""Share of m refused - m complied that a site must carry directly to be the commit site ("most of it"), and that a
later block must add by itself to be one that writes the decision as well."""
STABLE_GROUPS = 0.9
"""Adjusted Rand index of the groups with those of bootstrap draws from which they outweigh a mean transfer that says
that most pairs share nothing."""
MIN_LEAN = 0.8
"""Share of the bootstrap distribution on one side of the thresholds below which there is no verdict."""


class Verdict(StrEnum):
    """The answer to the question; the value is what is printed."""

    MONOLITHIC = "MONOLITHIC"
    """One mechanism shared by all categories."""
    PARTIALLY_MODULAR = "PARTIALLY MODULAR"
    """Some categories share a mechanism, others do not."""
    MODULAR = "MODULAR"
    """Most pairs of categories have mechanisms of their own."""
    UNDETERMINED = "UNDETERMINED"
    """The evidence cannot carry a verdict; the reason says why."""


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


def commit_site(direct: Sequence[tuple[Site, float]]) -> Site | None:
    """Return the first residual site whose direct effect carries most of the decision; None when none does.

    Args:
        direct: Residual sites in order of depth with the share of m refused - m complied that each carries when every
            later write is held at its counterfactual value.
    """
    return next((site for site, share in direct if share >= COMMIT_SHARE), None)


def writing_blocks(direct: Sequence[tuple[Site, float]]) -> tuple[int, ...]:
    """Return the blocks that write the decision: the one that commits, and each later one that alone adds most of it.

    Two blocks can each write half of it, so that the first commits by a hair while the second decides.

    Args:
        direct: As for `commit_site`.

    >>> sites = [Site.parse(f"residuals_{layer}") for layer in range(4)]
    >>> writing_blocks(list(zip(sites, [0.1, 0.52, 0.54, 1.06])))
    (1, 3)
    """
    commit = commit_site(direct)
    if commit is None:
        return ()
    added = [(site.layer, share - before) for (_, before), (site, share) in pairwise(direct)]
    return (commit.layer, *(layer for layer, more in added if layer > commit.layer and more >= COMMIT_SHARE))


def onset_site(auc: Sequence[tuple[Site, float]], threshold: float = 0.9) -> Site | None:
    """Return the first residual site where refused and complied prompts separate (cross-validated AUC)."""
    return next((site for site, value in auc if site.kind is SiteKind.RESIDUALS and value >= threshold), None)


def is_before(site: Site, writing: Sequence[int]) -> bool:
    """Return whether a site lies before the decision is written, where it can say something about the mechanism.

    That is in a block before the first that writes it, or among the MLP neurons of one that does.

    >>> is_before(Site.parse("residuals_2"), (2,))
    False
    >>> is_before(Site.parse("neurons_2"), (2,))
    True
    """
    if not writing:
        return False
    return site.layer < writing[0] or (site.kind is SiteKind.NEURONS and site.layer in writing)


def necessity_holds(low: Float[np.ndarray, " category"], value: Float[np.ndarray, " category"]) -> np.ndarray:
    """Return for each category whether its own necessity is clearly above 0: large enough, and so its lower bound."""
    return (value >= MIN_NECESSITY) & (low > MIN_NECESSITY / 2)


def usable_site(holds: Bool[np.ndarray, " category"]) -> bool:
    """Return whether enough categories have their own necessity at a site for it to count."""
    return bool(holds.sum() >= 2 and holds.mean() >= MIN_SHARE_NECESSARY)


@dataclass(frozen=True)
class Decision:
    """A verdict with how sure it is."""

    verdict: Verdict
    share: float
    """Share of the bootstrap distribution that gives this verdict (for UNDETERMINED: the largest share)."""
    leaning: Verdict
    """The most frequent verdict over the draws."""


def classify(value: float, monolithic: float, partially_modular: float) -> Verdict:
    """Return the verdict of a mean transfer by the thresholds; one that was not measured (nan) gives none.

    >>> classify(0.8, 0.8, 0.5), classify(0.5, 0.8, 0.5)
    (<Verdict.MONOLITHIC: 'MONOLITHIC'>, <Verdict.PARTIALLY_MODULAR: 'PARTIALLY MODULAR'>)
    """
    if np.isnan(value):
        return Verdict.UNDETERMINED
    if value >= monolithic:
        return Verdict.MONOLITHIC
    return Verdict.PARTIALLY_MODULAR if value >= partially_modular else Verdict.MODULAR


def share_together(groups: Int[np.ndarray, " category"]) -> float:
    """Return the share of ordered pairs of categories that are in the same group.

    >>> share_together(np.array([0, 0, 0, 1]))
    0.5
    """
    n = len(groups)
    together = groups[:, None] == groups[None, :]
    return float((together.sum() - n) / (n * (n - 1)))


def with_groups(verdict: Verdict, together: float, stability: float, partially_modular: float) -> Verdict:
    """Return the verdict of the mean transfer and the groups together.

    Transfer measures how much of an effect is shared, groups say who shares. With circuits that hold only part of a
    common mechanism the mean can fall below half where most pairs are plainly together, in the same groups in every
    bootstrap draw: then refusal is shared in part. Other contradictions about most pairs are UNDETERMINED.

    Args:
        verdict: That of the mean transfer.
        together: Share of the pairs that the groups put together.
        stability: Adjusted Rand index of the groups with those of bootstrap draws.
        partially_modular: The threshold below which most pairs share nothing.

    >>> with_groups(Verdict.MODULAR, 0.64, 0.96, 0.5)
    <Verdict.PARTIALLY_MODULAR: 'PARTIALLY MODULAR'>
    >>> with_groups(Verdict.MODULAR, 0.64, 0.6, 0.5), with_groups(Verdict.PARTIALLY_MODULAR, 0.3, 1.0, 0.5)
    (<Verdict.UNDETERMINED: 'UNDETERMINED'>, <Verdict.UNDETERMINED: 'UNDETERMINED'>)
    """
    if verdict is Verdict.UNDETERMINED or (verdict is Verdict.MODULAR) == (together < partially_modular):
        return verdict
    is_clear = verdict is Verdict.MODULAR and stability >= STABLE_GROUPS
    return Verdict.PARTIALLY_MODULAR if is_clear else Verdict.UNDETERMINED


def can_carry(verdict: Verdict, site: Site, inner_writing: Sequence[int]) -> bool:
    """Return whether a verdict may rest on a site.

    Where a block before the last writes the decision, only its neurons can say that categories share nothing: separate
    detectors that meet inside such a block are apart at every residual site before it. Measured in docs/decisions/0005.

    Args:
        verdict: The verdict in question.
        site: The decisive site.
        inner_writing: Blocks that write the decision, without the last block of the model.

    >>> stream = Site.parse("residuals_1")
    >>> [can_carry(verdict, stream, [2]) for verdict in (Verdict.MODULAR, Verdict.MONOLITHIC)]
    [False, True]
    >>> can_carry(Verdict.MODULAR, stream, [])
    True
    """
    return verdict is not Verdict.MODULAR or site.kind is SiteKind.NEURONS or not inner_writing


def decide(draws: Float[np.ndarray, " draw"], monolithic: float, partially_modular: float) -> Decision:
    """Return the verdict that at least `MIN_LEAN` of the bootstrap distribution gives, else UNDETERMINED."""
    kinds = [classify(float(value), monolithic, partially_modular) for value in draws]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in Verdict}
    leaning = max(shares, key=lambda kind: shares[kind])
    verdict = leaning if shares[leaning] >= MIN_LEAN else Verdict.UNDETERMINED
    return Decision(verdict, shares[leaning], leaning)
