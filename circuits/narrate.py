"""The sentences of a verdict: what was found, how sure it is, and why there is no answer when there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from circuits.verdict import Decision, Verdict, is_before
from refusal.schemas import Interval, SeedResult
from refusal.sites import Site

if TYPE_CHECKING:
    from circuits.compare_stage import _Profile
    from circuits.direct import DirectEffects


def reason(
    decision: Decision,
    average: float,
    interval: Interval,
    site: str,
    groups: tuple[tuple[str, ...], ...] | None,
    names: tuple[str, ...],
) -> str:
    """Return the sentence that a reader can quote."""
    low, high = interval
    measured = (
        f"removing one category's circuit at {site} removes on average {average:.2f} [{low:.2f}, {high:.2f}] "
        f"of what another category's own circuit removes (1 = one mechanism, 0 = separate ones)"
    )
    if decision.verdict is Verdict.UNDETERMINED:
        return (
            f"The interval crosses a threshold without a clear side: {measured}; "
            f"{decision.share:.0%} of the draws read {decision.leaning}; more prompts per category would tell."
        )
    return f"{_lead(decision.verdict, groups, len(names))}: {measured}; {decision.share:.0%} of the draws agree."


def _lead(verdict: Verdict, groups: tuple[tuple[str, ...], ...] | None, n: int) -> str:
    several = [group for group in groups or () if len(group) > 1]
    if verdict is Verdict.MONOLITHIC:
        return f"The {n} categories share one refusal mechanism"
    if verdict is Verdict.PARTIALLY_MODULAR:
        parts = " and ".join(f"{len(group)} categories" for group in several) or "some categories"
        return f"Refusal is shared in part: {parts} share a mechanism"
    if several:
        return f"Refusal is modular, in {len(groups or ())} groups of categories"
    return f"Each of the {n} categories refuses through a mechanism of its own"


def no_commit(direct: DirectEffects) -> str:
    """Return why there is no commit site."""
    best = float(direct.share.mean(1)[:-1].max()) if len(direct.sites) > 1 else float("nan")
    return (
        "No residual site carries most of the decision directly "
        f"(largest share before the last block {best:.2f}), so there is no depth at which the mechanism ends."
    )


def no_candidate(commit: Site, profiles: Iterable[_Profile], sites: Sequence[Site]) -> str:
    """Return why no site can decide."""
    before = [profile for profile in profiles if is_before(profile.effects.site, commit)]
    if not before:
        return (
            f"The decision is committed at {commit}, and none of the sites under study ({', '.join(map(str, sites))}) "
            "lies before it; add earlier sites to activation_layers."
        )
    best = max(before, key=lambda profile: float(profile.point.necessity.mean()))
    own = float(best.point.necessity.mean())
    return (
        f"At no site before commit ({commit}) does removing a category's own circuit remove enough of its refusals: "
        f"at best {own:.2f} of the difference, at {best.effects.site}, with {int(best.holds.sum())} of "
        f"{len(best.holds)} categories clearly above 0; there is no mechanism to compare."
    )


def seed_disagreement(seeds: Sequence[SeedResult], decision: Decision) -> str | None:
    """Return why SAE seeds forbid a verdict: fewer than two thirds of them give it alone; None when they agree."""
    agreeing = [seed for seed in seeds if seed.verdict == str(decision.verdict)]
    if 3 * len(agreeing) >= 2 * len(seeds):
        return None
    each = ", ".join(f"seed {seed.seed}: {seed.verdict}" for seed in seeds)
    return f"SAE seeds disagree ({each}), so the answer would be that of a seed, not of the model."
