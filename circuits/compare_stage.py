"""The compare stage: from circuits to `circuits/MODEL_comparison.json`.

1. direct effects of the residual sites (commit) and separation of the sides (onset);
2. effects of every category's circuit on every refused prompt, by site and SAE seed (`circuits.transfer`);
3. transfer with bootstrap draws, the decisive site chosen on one fold and measured on the other (`circuits.study`);
4. groups, structure with noise ceilings, permutation null, the original rule beside it;
5. the verdict and a sentence that can be quoted (`circuits.conclusion`); none where it would rest on SAEs that cannot
   carry a circuit (`circuits.sae_quality`).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from jaxtyping import Float

from circuits import narrate, sae_quality, site_effects, verdict
from circuits.attribution_file import AttributionFile
from circuits.conclusion import Conclusion, conclude
from circuits.direct import direct_effects
from circuits.discovery import discoverer
from circuits.evidence import Evidence
from circuits.groups import symmetrised
from circuits.nodes import percentile_interval
from circuits.structure import baseline, mixing, permutation_test, structural_similarity
from circuits.study import Profile, Study
from circuits.transfer import measure_transfer, save_effects
from circuits.verdict import Verdict
from refusal.artefacts import ResultPaths
from refusal.config import AnalysisConfig, Config
from refusal.measures import as_matrix
from refusal.schemas import (
    CategorySupport,
    Comparison,
    DepthPoint,
    IntervalMatrix,
    SiteQuality,
    StructuralSimilarity,
)
from refusal.sites import Site, SiteKind

log = logging.getLogger(__name__)


def compare_categories(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Measure, compare and judge one model; write the comparison and the per-prompt effects.

    What cannot be measured gives UNDETERMINED with its reason, not an error.

    Raises:
        ArtefactError: An artefact of an earlier stage is missing or damaged.
    """
    evidence = Evidence(config, model_name, paths)
    quality = sae_quality.site_qualities(paths, model_name, evidence.sites, evidence.seeds)
    fields = _nothing_measured(config.analysis, evidence, quality)
    problem = evidence.missing or _too_few(evidence)
    if problem is None:
        file = AttributionFile.load(paths.attributions(model_name))
        direct = direct_effects(evidence)
        effects = measure_transfer(evidence, discoverer(config.circuit.method, evidence), file)
        save_effects(effects, direct.metric, paths.effects(model_name))
        neurons = [each.site for each in effects if each.site.kind is SiteKind.NEURONS]
        mixed = {site: mixing(evidence, file, site) for site in neurons}
        study = Study(config.analysis, config.seed, evidence, direct, effects, mixed)
        fields |= _depth(study, file)
        problem = narrate.no_mechanism(study)
        if problem is None:
            fields |= _decided(study, conclude(study, quality)) | _structure(study, file)
            fields["notices"] += narrate.cautions(model_name, study.most_shared().site)
    if problem is not None:
        fields |= {"verdict": str(Verdict.UNDETERMINED), "reason": problem}
    comparison = Comparison.build(model=model_name, **fields)
    for notice in sae_quality.notices(quality):
        log.warning("%s: %s", model_name, notice)
    log.info("%s: %s", model_name, comparison.verdict)
    comparison.save(paths.comparison(model_name))


def _too_few(evidence: Evidence) -> str | None:
    used = evidence.contrasts.categories
    if len(used) > 1:
        return None
    left = "; ".join(_left_out(evidence))
    why = f" ({left})" if left else ""
    return f"Only one category, {used[0]}, can be used, and a comparison needs two{why}."


def _left_out(evidence: Evidence) -> list[str]:
    counts = evidence.contrasts.counts.items()
    return [f"{name}: {count.reason_left_out}" for name, count in counts if count.reason_left_out is not None]


def _nothing_measured(analysis: AnalysisConfig, evidence: Evidence, quality: tuple[SiteQuality, ...]) -> dict[str, Any]:
    """Return the fields of a comparison as they are before anything has been measured."""
    return {
        "categories": evidence.contrasts.categories,
        "average_similarity": None,
        "average_similarity_ci": (None, None),
        "decisive_site": None,
        "similarity": {},
        "similarity_ci": {},
        "groups": None,
        "groups_stability": None,
        "transfer": {},
        "transfer_ci": {},
        "structural_similarity": StructuralSimilarity(site=None, raw={}, noise_ceiling={}, normalised={}),
        "depth_profile": (),
        "text_auc": None,
        "text_auc_ci": (None, None),
        "onset_site": None,
        "shared_from_site": None,
        "commit_site": None,
        "sharing_depth": None,
        "seeds": (),
        "permutation": None,
        "support": _support(evidence),
        "thresholds": {
            "monolithic": analysis.monolithic_threshold,
            "partially_modular": analysis.partially_modular_threshold,
            "commit_share": verdict.COMMIT_SHARE,
            "min_margin": verdict.MIN_MARGIN,
            "min_necessity": verdict.MIN_NECESSITY,
            "min_share_necessary": verdict.MIN_SHARE_NECESSARY,
            "min_sufficiency": site_effects.MIN_SUFFICIENCY,
            "min_sufficiency_ratio": site_effects.MIN_SUFFICIENCY_RATIO,
            "strict_sufficiency": site_effects.STRICT_SUFFICIENCY,
            "strict_sufficiency_ratio": site_effects.STRICT_SUFFICIENCY_RATIO,
            "stable_groups": verdict.STABLE_GROUPS,
            "max_mixing": verdict.MAX_MIXING,
            "min_lean": verdict.MIN_LEAN,
            **sae_quality.LIMITS,
        },
        "baseline": baseline(evidence, analysis),
        "sae_quality": quality,
        "notices": (
            *evidence.labels.notices,
            *(f"not compared: {reason}" for reason in _left_out(evidence)),
            *(f"{evidence.labels.model}: {notice}" for notice in sae_quality.notices(quality)),
        ),
    }


def _support(evidence: Evidence) -> dict[str, CategorySupport]:
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


def _depth(study: Study, file: AttributionFile) -> dict[str, Any]:
    return {
        "depth_profile": tuple(_depth_point(study, profile, file.sizes[profile.site]) for profile in study.profiles),
        "text_auc": None if study.text_auc is None else study.text_auc.mean,
        "text_auc_ci": (None, None) if study.text_auc is None else (study.text_auc.low, study.text_auc.high),
        "onset_site": _name(study.onset),
        "shared_from_site": _name(study.shared_from),
        "commit_site": _name(study.commit),
        "sharing_depth": study.sharing_depth,
    }


def _depth_point(study: Study, profile: Profile, sizes: tuple[float, ...]) -> DepthPoint:
    measurable = bool(profile.holds.any())
    return DepthPoint(
        site=str(profile.site),
        own=float(profile.point.necessity.mean()),
        own_ci=percentile_interval(profile.draws.necessity.mean(1)),
        cross=float(profile.point.cross.mean()),
        transfer=profile.mean_transfer if measurable else None,
        transfer_ci=percentile_interval(profile.mean_of(profile.draws)) if measurable else (None, None),
        random=float(profile.point.random.mean()),
        direct=study.direct_share.get(profile.site),
        separation_auc=study.auc[profile.site],
        sufficiency_own=float(profile.sufficiency.own[0]),
        sufficiency=float(profile.sufficiency.cross[0]),
        sufficiency_ci=percentile_interval(profile.sufficiency.cross[1:]),
        size=float(np.mean(sizes)),
        before_commit=study.is_before(profile.site),
        mixing=study.mixing.get(profile.site),
    )


def _decided(study: Study, found: Conclusion) -> dict[str, Any]:
    """Return the verdict and what it rests on."""
    decisive = found.decisive
    point, draws = decisive.point.transfer[0], decisive.draws.transfer
    support = _support(study.evidence)
    for index, name in enumerate(study.names):
        measured = {
            "necessity": float(decisive.point.necessity[0, index]),
            "necessity_ci": percentile_interval(decisive.draws.necessity[:, index]),
        }
        support[name] = support[name].model_copy(update=measured)
    return {
        "verdict": str(found.verdict),
        "reason": found.reason,
        "average_similarity": found.average,
        "average_similarity_ci": found.interval,
        "decisive_site": str(decisive.site),
        "similarity": as_matrix(symmetrised(point), study.names),
        "similarity_ci": _intervals(study.names, np.stack([symmetrised(draw) for draw in draws])),
        "transfer": as_matrix(point, study.names),
        "transfer_ci": _intervals(study.names, draws),
        "groups": found.groups,
        "groups_stability": found.stability,
        "seeds": found.seeds,
        "support": support,
    }


def _structure(study: Study, file: AttributionFile) -> dict[str, Any]:
    site = study.most_shared().site
    return {
        "structural_similarity": structural_similarity(study.evidence, file, site),
        "permutation": permutation_test(study.evidence, file, site, study.analysis.permutations),
    }


def _name(site: Site | None) -> str | None:
    return None if site is None else str(site)


def _intervals(names: tuple[str, ...], draws: Float[np.ndarray, "draw category category"]) -> IntervalMatrix:
    return {a: {b: percentile_interval(draws[:, i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}
