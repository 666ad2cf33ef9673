"""The compare stage: from circuits to `circuits/MODEL_comparison.json`.

1. direct effects of the residual sites (commit) and separation of the sides (onset);
2. effects of every category's circuit on every refused prompt, by site and SAE seed (`circuits.transfer`);
3. transfer with bootstrap draws, the decisive site chosen on one fold and measured on the other (`circuits.verdict`);
4. groups, structure with noise ceilings, permutation null, the original rule beside it;
5. the verdict and a sentence that can be quoted.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from circuits import narrate, verdict
from circuits.attribution_file import AttributionFile
from circuits.direct import DirectEffects, direct_effects
from circuits.discovery import discoverer
from circuits.evidence import Evidence
from circuits.groups import find_groups, groups_stability, symmetrised
from circuits.nodes import percentile_interval
from circuits.structure import baseline, permutation_test, structural_similarity
from circuits.transfer import measure_transfer, save_effects
from circuits.verdict import Decision, Resampling, SiteEffects, SiteTransfer, Verdict, site_transfer
from refusal.artefacts import ResultPaths
from refusal.config import AnalysisConfig, Config
from refusal.schemas import (
    CategorySupport,
    Comparison,
    DepthPoint,
    IntervalMatrix,
    Matrix,
    SeedResult,
    StructuralSimilarity,
)
from refusal.sites import Site
from refusal.stats import cross_validated_auc

log = logging.getLogger(__name__)

GROUP_DRAWS = 100
"""Bootstrap draws for the stability of the groups."""


def compare_categories(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Measure, compare and judge one model; write the comparison and the per-prompt effects.

    What cannot be measured gives UNDETERMINED with its reason, not an error.

    Raises:
        ArtefactError: An artefact of an earlier stage is missing or damaged.
    """
    evidence = Evidence(config, model_name, paths)
    reason = evidence.missing
    if reason is None and len(evidence.contrasts.categories) < 2:
        reason = _too_few(evidence)
    if reason is not None:
        log.warning("%s: UNDETERMINED: %s", model_name, reason)
        undetermined(config, evidence, model_name, reason).save(paths.comparison(model_name))
        return
    file = AttributionFile.load(paths.attributions(model_name))
    direct = direct_effects(evidence)
    effects = measure_transfer(evidence, discoverer(config.circuit.method, evidence), file)
    save_effects(effects, direct.metric, paths.effects(model_name))
    study = Study(config, evidence, file, direct, effects)
    study.comparison(model_name).save(paths.comparison(model_name))


def _too_few(evidence: Evidence) -> str:
    used = evidence.contrasts.categories
    left = [
        f"{name}: {count.reason_left_out}" for name, count in evidence.contrasts.counts.items() if count.reason_left_out
    ]
    why = f" ({'; '.join(left)})" if left else ""
    return f"only one category, {used[0]}, can be used, and a comparison needs two{why}"


@dataclass(frozen=True)
class _Profile:
    """One site: its transfer as measured, under the bootstrap, and on each fold."""

    effects: SiteEffects
    point: SiteTransfer
    draws: SiteTransfer
    folds: tuple[SiteTransfer, SiteTransfer]
    holds: Bool[np.ndarray, " category"]
    """Categories whose own necessity holds."""
    is_candidate: bool
    """Before commit, and own necessity holds in enough categories."""


class Study:
    """Everything that is concluded from one model's measured effects."""

    def __init__(
        self,
        config: Config,
        evidence: Evidence,
        file: AttributionFile,
        direct: DirectEffects,
        effects: list[SiteEffects],
    ) -> None:
        self.analysis: AnalysisConfig = config.analysis
        self.seed = config.seed
        self.evidence = evidence
        self.file = file
        self.direct = direct
        contrasts = evidence.contrasts
        self.names = contrasts.categories
        self.category = contrasts.category[contrasts.refused]
        self.fold = contrasts.fold[contrasts.refused]
        self.gap = self._gap()
        mean_share = direct.share.mean(1)
        self.commit = verdict.commit_site(list(zip(direct.sites, (float(x) for x in mean_share), strict=True)))
        self.auc = {site: self._auc(site) for site in evidence.sites}
        self.onset = verdict.onset_site(list(self.auc.items()))
        generator = np.random.default_rng([config.seed, 1])
        n_seeds = len(evidence.seeds)
        self.weights = verdict.resample(self.category, n_seeds, config.analysis.bootstrap, generator)
        self.plain = verdict.plain_weights(self.category, n_seeds)
        self.profiles = {site.site: self._profile(site) for site in effects}

    def _gap(self) -> Float[np.ndarray, " category"]:
        """Return m refused - m complied of each category."""
        contrasts = self.evidence.contrasts
        sides = [
            [self.direct.metric[contrasts.rows(c, refused=side)].mean() for c in range(len(self.names))]
            for side in (True, False)
        ]
        return np.asarray(sides[0]) - np.asarray(sides[1])

    def _auc(self, site: Site) -> float:
        """Return the mean over categories of the cross-validated AUC of refused against complied prompts."""
        contrasts = self.evidence.contrasts
        acts = self.evidence.store.readout(site, list(contrasts.prompt_ids)).double().numpy()
        values = []
        for c in range(len(self.names)):
            rows = contrasts.category == c
            generator = np.random.default_rng([self.seed, 2, c])
            values.append(cross_validated_auc(acts[rows], contrasts.is_refused[rows], generator))
        return float(np.mean(values))

    def _profile(self, effects: SiteEffects) -> _Profile:
        def under(weights: Resampling) -> SiteTransfer:
            return site_transfer(effects, self.gap, self.category, weights)

        halves = [Resampling((self.fold == half).astype(float)[None], self.plain.seeds) for half in (0, 1)]
        point, draws = under(self.plain), under(self.weights)
        low = np.quantile(draws.necessity, 0.025, axis=0)
        holds = verdict.necessity_holds(low, point.necessity[0])
        candidate = verdict.is_before(effects.site, self.commit) and verdict.usable_site(holds)
        return _Profile(effects, point, draws, (under(halves[0]), under(halves[1])), holds, candidate)

    # The decisive site -----------------------------------------------------------------------------------------------

    @property
    def candidates(self) -> list[_Profile]:
        """Sites that can decide."""
        return [profile for profile in self.profiles.values() if profile.is_candidate]

    def most_shared(self, fold: int | None = None) -> _Profile:
        """Return the candidate with the largest mean transfer, as one fold or all prompts measure it."""

        def shared(profile: _Profile) -> float:
            transfer = profile.point if fold is None else profile.folds[fold]
            return float(transfer.mean_transfer(profile.holds)[0])

        return max(self.candidates, key=shared)

    def average(self) -> tuple[float, Float[np.ndarray, " draw"]]:
        """Return the mean off-diagonal transfer, chosen on one fold and measured on the other, and its draws."""
        values, draws = [], []
        for half in (0, 1):
            profile = self.most_shared(half)
            values.append(profile.folds[1 - half].mean_transfer(profile.holds)[0])
            draws.append(profile.draws.mean_transfer(profile.holds))
        # the draws resample all prompts, so they carry the sampling error of the pooled estimate
        pooled = np.mean(draws, axis=0)
        value = float(np.mean(values))
        centre = float(np.mean([self.most_shared(h).point.mean_transfer(self.most_shared(h).holds)[0] for h in (0, 1)]))
        return value, pooled + (value - centre)

    # The artefact ----------------------------------------------------------------------------------------------------

    def comparison(self, model_name: str) -> Comparison:
        """Return the comparison of the model's categories with its verdict."""
        problem = self._problem()
        if problem is not None:
            return self._fill(model_name, None, Decision(Verdict.UNDETERMINED, 0.0, Verdict.UNDETERMINED), problem)
        value, draws = self.average()
        decision = verdict.decide(draws, self.analysis.monolithic_threshold, self.analysis.partially_modular_threshold)
        return self._fill(model_name, (value, draws), decision, None)

    def _problem(self) -> str | None:
        if self.commit is None:
            return narrate.no_commit(self.direct)
        if not self.candidates:
            return narrate.no_candidate(self.commit, self.profiles.values(), self.evidence.sites)
        return None

    def _fill(
        self,
        model_name: str,
        average: tuple[float, Float[np.ndarray, " draw"]] | None,
        decision: Decision,
        problem: str | None,
    ) -> Comparison:
        decisive = self.most_shared() if average is not None else None
        groups, stability = self._groups(decisive)
        seeds = self._seeds() if decisive is not None else ()
        verdict_now, reason = decision.verdict, problem
        if average is not None:
            interval = percentile_interval(average[1])
            reason = narrate.reason(decision, average[0], interval, str(decisive.effects.site), groups, self.names)
            disagree = narrate.seed_disagreement(seeds, decision)
            if decision.verdict is not Verdict.UNDETERMINED and disagree is not None:
                verdict_now, reason = Verdict.UNDETERMINED, disagree
        fields: dict[str, Any] = {
            "model": model_name,
            "categories": self.names,
            "verdict": str(verdict_now),
            "reason": reason,
            "average_similarity": None if average is None else average[0],
            "average_similarity_ci": (None, None) if average is None else percentile_interval(average[1]),
            "groups": groups,
            "groups_stability": stability,
            "seeds": seeds,
            **self._matrices(decisive),
            **self._depth(decisive),
            **self._structure(decisive),
            "support": self._support(decisive),
            "thresholds": _thresholds(self.analysis),
            "notices": self._notices(),
        }
        return Comparison.build(**fields)

    def _groups(self, decisive: _Profile | None) -> tuple[tuple[tuple[str, ...], ...] | None, float | None]:
        if decisive is None:
            return None, None
        folds = np.stack([fold.transfer[0] for fold in decisive.folds])
        labels = find_groups(decisive.point.transfer[0], folds)
        groups = tuple(
            tuple(name for name, label in zip(self.names, labels, strict=True) if label == group)
            for group in range(max(labels) + 1)
        )
        return groups, groups_stability(labels, decisive.draws.transfer[:GROUP_DRAWS])

    def _seeds(self) -> tuple[SeedResult, ...]:
        """Return the verdict that each SAE seed alone would give."""
        results = []
        for index, seed in enumerate(self.evidence.seeds):
            alone = np.zeros((1, len(self.evidence.seeds)))
            alone[0, index] = 1.0
            weights = Resampling(self.plain.prompts, alone)
            best = max((self._mean(profile, weights), str(profile.effects.site)) for profile in self.candidates)
            kind = verdict.classify(
                best[0], self.analysis.monolithic_threshold, self.analysis.partially_modular_threshold
            )
            results.append(SeedResult(seed=seed, decisive_site=best[1], average_similarity=best[0], verdict=kind))
        return tuple(results)

    def _mean(self, profile: _Profile, weights: Resampling) -> float:
        transfer = site_transfer(profile.effects, self.gap, self.category, weights)
        return float(transfer.mean_transfer(profile.holds)[0])

    def _matrices(self, decisive: _Profile | None) -> dict[str, Any]:
        if decisive is None:
            return {"decisive_site": None, "similarity": {}, "similarity_ci": {}, "transfer": {}, "transfer_ci": {}}
        point = decisive.point.transfer[0]
        draws = decisive.draws.transfer
        similar = np.stack([symmetrised(draw) for draw in draws])
        return {
            "decisive_site": str(decisive.effects.site),
            "similarity": _matrix(self.names, symmetrised(point)),
            "similarity_ci": _interval_matrix(self.names, similar),
            "transfer": _matrix(self.names, point),
            "transfer_ci": _interval_matrix(self.names, draws),
        }

    def _depth(self, decisive: _Profile | None) -> dict[str, Any]:
        shared_from = next(
            (
                profile.effects.site
                for profile in self.candidates
                if profile.point.mean_transfer(profile.holds)[0] >= self.analysis.monolithic_threshold
            ),
            None,
        )
        depth = None
        if self.commit is not None and shared_from is not None and self.onset is not None:
            span = self.commit.layer - self.onset.layer
            depth = (self.commit.layer - shared_from.layer) / span if span > 0 else None
        return {
            "depth_profile": tuple(self._depth_point(profile) for profile in self.profiles.values()),
            "onset_site": _name(self.onset),
            "shared_from_site": _name(shared_from),
            "commit_site": _name(self.commit),
            "sharing_depth": depth,
        }

    def _depth_point(self, profile: _Profile) -> DepthPoint:
        site = profile.effects.site
        direct = dict(zip(self.direct.sites, self.direct.share.mean(1), strict=True))
        measurable = bool(profile.holds.any())
        draws = profile.draws.mean_transfer(profile.holds) if measurable else None
        return DepthPoint(
            site=str(site),
            own=float(profile.point.necessity.mean()),
            own_ci=percentile_interval(profile.draws.necessity.mean(1)),
            cross=float(profile.point.cross.mean()),
            transfer=float(profile.point.mean_transfer(profile.holds)[0]) if measurable else None,
            transfer_ci=(None, None) if draws is None else percentile_interval(draws),
            random=float(profile.point.random.mean()),
            direct=None if site not in direct else float(direct[site]),
            separation_auc=self.auc[site],
            size=self.file.sizes[site],
            before_commit=verdict.is_before(site, self.commit),
        )

    def _structure(self, decisive: _Profile | None) -> dict[str, Any]:
        site = None if decisive is None else decisive.effects.site
        return {
            "structural_similarity": structural_similarity(self.evidence, self.file, site),
            "permutation": None
            if site is None
            else permutation_test(self.evidence, self.file, site, self.analysis.permutations),
            "baseline": baseline(self.evidence, self.analysis),
        }

    def _support(self, decisive: _Profile | None) -> dict[str, CategorySupport]:
        support = support_of(self.evidence)
        if decisive is None:
            return support
        for index, name in enumerate(self.names):
            necessity = float(decisive.point.necessity[0, index])
            interval = percentile_interval(decisive.draws.necessity[:, index])
            support[name] = support[name].model_copy(update={"necessity": necessity, "necessity_ci": interval})
        return support

    def _notices(self) -> tuple[str, ...]:
        left = [
            f"{name} is not compared: {count.reason_left_out}"
            for name, count in self.evidence.contrasts.counts.items()
            if count.reason_left_out
        ]
        return (*self.evidence.labels.notices, *left)


def undetermined(config: Config, evidence: Evidence, model_name: str, reason: str) -> Comparison:
    """Return the comparison of a model on which nothing could be measured."""
    return Comparison.build(
        model=model_name,
        categories=evidence.contrasts.categories,
        verdict=str(Verdict.UNDETERMINED),
        reason=reason,
        average_similarity=None,
        average_similarity_ci=(None, None),
        decisive_site=None,
        similarity={},
        similarity_ci={},
        groups=None,
        groups_stability=None,
        transfer={},
        transfer_ci={},
        structural_similarity=StructuralSimilarity(site=None, raw={}, noise_ceiling={}, normalised={}),
        depth_profile=(),
        onset_site=None,
        shared_from_site=None,
        commit_site=None,
        sharing_depth=None,
        seeds=(),
        permutation=None,
        support=support_of(evidence),
        thresholds=_thresholds(config.analysis),
        baseline=baseline(evidence, config.analysis),
        notices=evidence.labels.notices,
    )


def support_of(evidence: Evidence) -> dict[str, CategorySupport]:
    """Return how many prompts each category gives, before necessity is known."""
    contrasts = evidence.contrasts
    used = {name: len(contrasts.rows(index, refused=True)) for index, name in enumerate(contrasts.categories)}
    return {
        name: CategorySupport(
            n_refused=count.n_refused,
            n_complied=count.n_complied,
            n_used=used.get(name, 0),
            necessity=None,
            necessity_ci=(None, None),
            reason_left_out=count.reason_left_out,
        )
        for name, count in contrasts.counts.items()
    }


def _thresholds(analysis: AnalysisConfig) -> dict[str, float]:
    return {
        "monolithic": analysis.monolithic_threshold,
        "partially_modular": analysis.partially_modular_threshold,
        "commit_share": verdict.COMMIT_SHARE,
        "min_necessity": verdict.MIN_NECESSITY,
        "min_share_necessary": verdict.MIN_SHARE_NECESSARY,
        "min_lean": verdict.MIN_LEAN,
    }


def _name(site: Site | None) -> str | None:
    return None if site is None else str(site)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _matrix(names: tuple[str, ...], values: Float[np.ndarray, "category category"]) -> Matrix:
    return {a: {b: _number(values[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}


def _interval_matrix(names: tuple[str, ...], draws: Float[np.ndarray, "draw category category"]) -> IntervalMatrix:
    return {a: {b: percentile_interval(draws[:, i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}
