"""The verdict of a study, its reason in words, and what it rests on.

The mean transfer gives an answer; groups complete it; then each doubt in turn can take it away.
"""

from __future__ import annotations

from dataclasses import dataclass

from circuits import narrate, sae_quality, verdict
from circuits.narrate import Groups
from circuits.nodes import percentile_interval
from circuits.study import Profile, Study, is_supported_by_seeds
from circuits.verdict import Decision, Verdict
from refusal.schemas import Interval, SeedResult, SiteQuality


@dataclass(frozen=True)
class Conclusion:
    """A verdict with all that a reader needs to judge it."""

    verdict: Verdict
    reason: str
    """A sentence that can be quoted."""
    decisive: Profile
    """The site that the verdict rests on."""
    average: float
    """Mean off-diagonal transfer there."""
    interval: Interval
    """Its 95 % bootstrap interval."""
    groups: Groups
    """The categories that share a mechanism, by name."""
    stability: float
    """Adjusted Rand index of the groups with those of bootstrap draws."""
    seeds: tuple[SeedResult, ...]
    """What each SAE seed alone would say."""


def conclude(study: Study, quality: tuple[SiteQuality, ...]) -> Conclusion:
    """Return what a study says, given how good its SAEs are."""
    decisive, average, seeds = study.most_shared(), study.average(), study.seeds()
    decision = study.decide(average)
    labels, stability = study.groups
    groups = tuple(
        tuple(name for name, label in zip(study.names, labels, strict=True) if label == group)
        for group in range(int(labels.max()) + 1)
    )
    interval, together = percentile_interval(average.draws), verdict.share_together(labels)
    limits = study.analysis.partially_modular_threshold, study.analysis.monolithic_threshold
    joined = verdict.with_groups(decision.verdict, together, stability, *limits)
    reason = narrate.reason(decision, average.value, interval, decisive.site, groups)
    if joined is Verdict.UNDETERMINED and decision.verdict is not joined:
        reason = narrate.groups_disagree(groups, together, average.value)
    elif joined is not decision.verdict:
        reason = narrate.shared_in_groups(groups, together, stability, average.value, interval)
    if not verdict.can_carry(joined, decisive.site, study.inner_writing):
        joined, reason = Verdict.UNDETERMINED, narrate.block_unseen(average.value, interval, decisive.site)
    doubt = _doubt(study, quality, decision, seeds)
    if doubt is not None:
        joined, reason = Verdict.UNDETERMINED, doubt
    return Conclusion(joined, reason, decisive, average.value, interval, groups, stability, seeds)


def _doubt(
    study: Study, quality: tuple[SiteQuality, ...], decision: Decision, seeds: tuple[SeedResult, ...]
) -> str | None:
    """Return why SAEs take the answer away, or None when they do not."""
    unfit = sae_quality.unfit(quality, study.decisive_sites)
    if unfit:
        return narrate.saes_unfit(unfit)
    if decision.verdict is not Verdict.UNDETERMINED and not is_supported_by_seeds(seeds, decision.verdict):
        return narrate.seeds_disagree(seeds)
    return None
