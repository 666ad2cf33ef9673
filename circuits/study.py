"""What one model's measured effects say: profiles by depth, the decisive site, its mean transfer, groups, SAE seeds.

Holds the arithmetic that needs all sites at once; the pieces are pure functions in `circuits.verdict` and
`circuits.groups`. It writes nothing and asks the model nothing: everything has been measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits import site_effects, verdict
from circuits.direct import DirectEffects
from circuits.evidence import Evidence
from circuits.groups import find_groups, groups_stability
from circuits.predictable import text_auc
from circuits.site_effects import (
    RefusedPrompts,
    Resampling,
    SiteEffects,
    SiteTransfer,
    Sufficiency,
    plain_weights,
    site_transfer,
)
from circuits.verdict import Decision, Verdict
from refusal.config import AnalysisConfig
from refusal.schemas import SeedResult
from refusal.sites import Site, SiteKind
from refusal.stats import bootstrap_weights, cross_validated_auc, nan_mean

GROUP_DRAWS = 100
"""Bootstrap draws for the stability of the groups."""


@dataclass(frozen=True)
class Profile:
    """One site: its transfer as measured, under the bootstrap, and on each fold."""

    effects: SiteEffects
    point: SiteTransfer
    """One draw: the data as it is."""
    draws: SiteTransfer
    folds: tuple[SiteTransfer, SiteTransfer]
    """One draw each: the prompts of one fold."""
    holds: Bool[np.ndarray, " category"]
    """Categories whose own necessity holds."""
    sufficiency: Sufficiency
    """First draw: the data as they are; then the bootstrap."""
    is_candidate: bool
    """Before commit, carries decisions, and own necessity holds in enough categories."""

    @property
    def site(self) -> Site:
        """The site."""
        return self.effects.site

    @property
    def mean_transfer(self) -> float:
        """Mean off-diagonal transfer onto the categories whose necessity holds."""
        return float(self.mean_of(self.point)[0])

    def mean_of(self, measured: SiteTransfer) -> Float[np.ndarray, " draw"]:
        """Return that mean for other weights of the same prompts: a fold, an SAE seed, or the bootstrap."""
        return measured.mean_transfer(self.holds, self.point.transfer[0] < 0)


@dataclass(frozen=True)
class Average:
    """The mean off-diagonal transfer at the decisive site."""

    value: float
    """Site chosen on one fold and measured on the other, mean of both ways."""
    draws: Float[np.ndarray, " draw"]
    """Bootstrap distribution around it."""


class Study:
    """The conclusions from one model's effects."""

    def __init__(
        self,
        analysis: AnalysisConfig,
        seed: int,
        evidence: Evidence,
        direct: DirectEffects,
        effects: list[SiteEffects],
        mixing: Mapping[Site, float | None],
    ) -> None:
        contrasts = evidence.contrasts
        self.analysis = analysis
        self.evidence = evidence
        self.direct = direct
        self.names = contrasts.categories
        self.n_seeds = len(evidence.seeds)
        self.refused = RefusedPrompts(contrasts.category[contrasts.refused], contrasts.fold[contrasts.refused])
        self.gap = self._gap()
        self.margins = (
            float(np.median(direct.metric[contrasts.is_refused])),
            float(-np.median(direct.metric[~contrasts.is_refused])),
        )
        self.text_auc = text_auc(evidence.texts, contrasts.category, contrasts.is_refused, seed)
        self.lead = float(np.median(direct.lead[contrasts.is_refused]))
        self.direct_share = dict(direct.mean_shares())
        self.commit = verdict.commit_site(direct.mean_shares())
        self.writing = verdict.writing_blocks(direct.mean_shares())
        self.mixing = mixing
        self.last_layer = max(site.layer for site in direct.sites)
        self.inner_writing = [layer for layer in self.writing if layer < self.last_layer]
        self.auc = {each.site: self._auc(each.site, seed) for each in effects}
        self.onset = verdict.onset_site(list(self.auc.items()))
        generator = np.random.default_rng([seed, 1])
        self.weights = site_effects.resample(self.refused, self.n_seeds, analysis.bootstrap, generator)
        complied = contrasts.category[~contrasts.is_refused]
        self.complied = complied
        draws = bootstrap_weights(len(complied), analysis.bootstrap, generator, strata=complied)
        self.complied_weights = np.concatenate([np.ones((1, len(complied))), draws])
        self.profiles = [self._profile(each) for each in effects]

    def _gap(self) -> Float[np.ndarray, " category"]:
        """Return m refused - m complied of each category, logits."""
        contrasts = self.evidence.contrasts
        means = [
            [self.direct.metric[contrasts.rows(index, refused=side)].mean() for side in (True, False)]
            for index in range(len(self.names))
        ]
        return np.array([refused - complied for refused, complied in means])

    def _auc(self, site: Site, seed: int) -> float:
        """Return the mean over categories of the cross-validated AUC of refused against complied prompts."""
        contrasts = self.evidence.contrasts
        acts = self.evidence.acts(site).double().numpy()
        values = []
        for index in range(len(self.names)):
            rows = contrasts.category == index
            generator = np.random.default_rng([seed, 2, index])
            values.append(cross_validated_auc(acts[rows], contrasts.is_refused[rows], generator).value)
        return float(np.mean([value for value in values if value is not None]))

    def _profile(self, effects: SiteEffects) -> Profile:
        def under(weights: Resampling) -> SiteTransfer:
            """Return the transfer under some weights."""
            return site_transfer(effects, self.gap, self.refused, _seeds_of(effects, weights))

        point, draws = under(plain_weights(self.refused, self.n_seeds)), under(self.weights)
        folds = [under(plain_weights(self.refused, self.n_seeds, fold)) for fold in (0, 1)]
        holds = verdict.necessity_holds(np.quantile(draws.necessity, 0.025, axis=0), point.necessity[0])
        sufficiency = site_effects.sufficiency(effects, self.gap, self.complied, self.complied_weights)
        candidate = self.is_before(effects.site) and verdict.usable_site(holds) and sufficiency.carries_decisions
        return Profile(effects, point, draws, (folds[0], folds[1]), holds, sufficiency, candidate)

    def is_before(self, site: Site) -> bool:
        """Return whether a site lies before the decision is written."""
        return verdict.is_before(site, self.writing)

    @cached_property
    def candidates(self) -> list[Profile]:
        """Sites that carry decisions before commit, in order of depth."""
        return [profile for profile in self.profiles if profile.is_candidate]

    @cached_property
    def deciding(self) -> list[Profile]:
        """Those of the candidates that can decide: neurons; else what passes the strict limits; else all.

        Neurons of the last block come last: they write the answer's tokens, which are common to all categories. So do
        neurons that mix decisions made before them.
        """
        neurons = [profile for profile in self.candidates if profile.site.kind is SiteKind.NEURONS]
        inner = [profile for profile in neurons if profile.site.layer < self.last_layer and self._is_pure(profile.site)]
        streams = [profile for profile in self.candidates if profile.site.kind is not SiteKind.NEURONS]
        strict = [profile for profile in streams if profile.sufficiency.is_strict]
        return inner or strict or streams or neurons

    def _is_pure(self, site: Site) -> bool:
        """Return whether the units of a site are of the decision alone, as far as could be measured."""
        share = self.mixing.get(site)
        return share is None or share <= verdict.MAX_MIXING

    def most_shared(self, fold: int | None = None) -> Profile:
        """Return the deciding site with the largest mean transfer, as one fold or all prompts measure it."""

        def shared(profile: Profile) -> float:
            """Return the rank of a site."""
            measured = profile.point if fold is None else profile.folds[fold]
            return unmeasured_last(float(profile.mean_of(measured)[0]))

        return max(self.deciding, key=shared)

    @property
    def decisive_sites(self) -> tuple[Site, ...]:
        """The sites that the verdict rests on: the most shared of all prompts and of each fold."""
        return tuple(dict.fromkeys(self.most_shared(fold).site for fold in (None, 0, 1)))

    def average(self) -> Average:
        """Return the mean off-diagonal transfer, chosen on one fold and measured on the other."""
        values, centres, draws = [], [], []
        for half in (0, 1):
            profile = self.most_shared(half)
            values.append(profile.mean_of(profile.folds[1 - half])[0])
            centres.append(profile.mean_transfer)
            draws.append(profile.mean_of(profile.draws))
        # The draws resample all prompts; they are moved to the cross-fitted value, which chose no site on its own data.
        value = float(np.mean(values))
        return Average(value, np.mean(draws, axis=0) + value - float(np.mean(centres)))

    def decide(self, average: Average) -> Decision:
        """Return the verdict of the mean transfer under the configured thresholds."""
        return verdict.decide(
            average.draws, self.analysis.monolithic_threshold, self.analysis.partially_modular_threshold
        )

    @cached_property
    def groups(self) -> tuple[Int[np.ndarray, " category"], float]:
        """Return the index of each category's group at the decisive site, and the stability of the groups."""
        decisive = self.most_shared()
        folds = np.stack([fold.transfer[0] for fold in decisive.folds])
        found = find_groups(decisive.point.transfer[0], folds)
        return found, groups_stability(found, decisive.draws.transfer[:GROUP_DRAWS])

    def seeds(self) -> tuple[SeedResult, ...]:
        """Return the verdict that each SAE seed alone would give."""
        return tuple(self._seed(index, seed) for index, seed in enumerate(self.evidence.seeds))

    def _seed(self, index: int, seed: int) -> SeedResult:
        weights = replace(plain_weights(self.refused, self.n_seeds), seeds=np.eye(self.n_seeds)[index][None])
        means = {}
        for profile in self.deciding:
            alone = site_transfer(profile.effects, self.gap, self.refused, _seeds_of(profile.effects, weights))
            means[profile.site] = float(profile.mean_of(alone)[0])
        best = max(means, key=lambda site: unmeasured_last(means[site]))
        kind = verdict.classify(
            means[best], self.analysis.monolithic_threshold, self.analysis.partially_modular_threshold
        )
        return SeedResult(seed=seed, decisive_site=str(best), average_similarity=means[best], verdict=str(kind))

    @cached_property
    def shared_from(self) -> Site | None:
        """The first site where the categories of a group share: mean transfer within groups reaches the threshold.

        For neurons it is the residual stream after their block, the first of the stream that holds what they share.
        None when no two categories share a mechanism.
        """
        if not self.candidates:
            return None
        groups, _ = self.groups
        together = (groups[:, None] == groups[None, :]) & ~np.eye(len(groups), dtype=bool)
        if not together.any():
            return None
        for profile in self.candidates:
            if nan_mean(profile.point.transfer[0][together]) >= self.analysis.monolithic_threshold:
                is_neurons = profile.site.kind is SiteKind.NEURONS
                return Site(SiteKind.RESIDUALS, profile.site.layer) if is_neurons else profile.site
        return None

    @property
    def sharing_depth(self) -> float | None:
        """(commit - shared from) / (commit - onset) in blocks; None where an anchor is missing or they coincide."""
        if self.commit is None or self.shared_from is None or self.onset is None:
            return None
        span = self.commit.layer - self.onset.layer
        return (self.commit.layer - self.shared_from.layer) / span if span > 0 else None


def unmeasured_last(value: float) -> float:
    """Return a value by which to rank, where what was not measured (nan) comes last.

    >>> max([float("nan"), 0.5, 0.2], key=unmeasured_last)
    0.5
    """
    return -np.inf if np.isnan(value) else value


def _seeds_of(effects: SiteEffects, weights: Resampling) -> Resampling:
    """Return the weights for a site that has one measurement for all SAE seeds as well as for one with its own."""
    n_seeds = len(effects.effect)
    return weights if n_seeds == weights.seeds.shape[1] else replace(weights, seeds=np.ones((len(weights.seeds), 1)))


def is_supported_by_seeds(seeds: tuple[SeedResult, ...], verdict_now: Verdict) -> bool:
    """Return whether at least two thirds of the SAE seeds give the verdict on their own."""
    agreeing = sum(seed.verdict == str(verdict_now) for seed in seeds)
    return 3 * agreeing >= 2 * len(seeds)
