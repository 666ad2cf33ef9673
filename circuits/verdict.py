"""From transfer to a verdict: depth anchors, which sites count, and what the evidence cannot carry.

1. Transfer between categories and sufficiency of their circuits at each site: `circuits.site_effects`.
2. Only sites before commit count: from there on every model looks monolithic, because the output direction of a refusal
   is common to all categories. That is the sites of earlier blocks, and the MLP neurons of the blocks that write the
   decision: what they write is common, which of them write it is the question.
3. Only sites that carry decisions count: inducing any category's circuit in the complied prompts of another makes the
   model refuse. Before the decision a site carries evidence (words, intents); sharing that is not sharing a mechanism.
   An OR of separate detectors passes as well as one detector for all, so this condition favours no verdict.
4. Where neurons of those blocks qualify they decide, for there units are of the decision alone; else residual sites do.
   Neurons of the last block come after both: they write the answer's tokens, whoever decided. So do neurons that mix
   decisions made before them.
   The decisive site is the most shared of those where own necessity holds; it is chosen on one fold and measured on the
   other.
5. The mean off-diagonal transfer there, with its bootstrap distribution, meets the thresholds. Stable groups that put
   most pairs together, and not all, make it PARTIALLY MODULAR. UNDETERMINED, with the reason in words, when it cannot
   be measured, the distribution leans to no side, the groups contradict it otherwise, or it is MODULAR and a block
   before the last writes the decision, where no neurons were there to show that categories do not meet.

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

MIN_MARGIN = 0.5
"""Median |m| in logits that refused and complied prompts must each have: below it the first token is a toss-up, and
which side a prompt falls on is noise, not a decision."""
MIN_NECESSITY = 0.1
"""Own necessity a category needs at a site before transfer is computed there, as a share of m refused - m complied."""
MIN_SHARE_NECESSARY = 0.8
"""Share of the categories whose own necessity must hold for a site to count."""
MAX_MIXING = 0.05
"""Share of the pairs of categories that may be neither alike nor apart at neurons for these to decide. Beyond it they
read decisions made before and mix them."""
COMMIT_SHARE = 0.5
"""Share of m refused - m complied that a site must carry directly to be the commit site ("most of it"), and that a
later block must add by itself to be one that writes the decision as well."""
STABLE_GROUPS = 0.9
"""Adjusted Rand index of the groups with those of bootstrap draws from which they outweigh the mean transfer about
whether all pairs, most or few share a mechanism."""
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


def with_groups(
    verdict: Verdict, together: float, stability: float, partially_modular: float, monolithic: float
) -> Verdict:
    """Return the verdict of the mean transfer and the groups together.

    Transfer measures how much of an effect is shared, groups say who shares. With circuits that hold only part of a
    common mechanism the mean can fall below half where most pairs are plainly together, in the same groups in every
    bootstrap draw; with circuits that hold a little of each other's it can pass for one mechanism where groups are
    plainly apart. Then refusal is shared in part. Other contradictions are UNDETERMINED.

    Args:
        verdict: That of the mean transfer; UNDETERMINED where its interval crosses a threshold.
        together: Share of the pairs that the groups put together.
        stability: Adjusted Rand index of the groups with those of bootstrap draws.
        partially_modular: The threshold below which most pairs share nothing.
        monolithic: The threshold from which on all share one mechanism.

    >>> with_groups(Verdict.MODULAR, 0.64, 0.96, 0.5, 0.8)
    <Verdict.PARTIALLY_MODULAR: 'PARTIALLY MODULAR'>
    >>> with_groups(Verdict.MONOLITHIC, 0.64, 0.96, 0.5, 0.8)
    <Verdict.PARTIALLY_MODULAR: 'PARTIALLY MODULAR'>
    >>> with_groups(Verdict.MODULAR, 0.64, 0.6, 0.5, 0.8), with_groups(Verdict.PARTIALLY_MODULAR, 0.3, 1.0, 0.5, 0.8)
    (<Verdict.UNDETERMINED: 'UNDETERMINED'>, <Verdict.UNDETERMINED: 'UNDETERMINED'>)
    """
    of_groups = classify(together, monolithic, partially_modular)
    overlap = verdict is Verdict.PARTIALLY_MODULAR and of_groups is Verdict.MONOLITHIC
    if verdict is of_groups or overlap:
        return verdict
    is_clear = of_groups is Verdict.PARTIALLY_MODULAR and stability >= STABLE_GROUPS
    return of_groups if is_clear else Verdict.UNDETERMINED


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
