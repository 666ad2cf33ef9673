"""Parts of the results that need the model but no answers: pairs, writes, attention, structure, as records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from refusal.config import Config
from refusal.measures import as_matrix, or_none
from refusal.patching.attention import GROUPS, attention_patterns
from refusal.patching.direct import direction_attribution, linear_attribution, mean_difference, writers
from refusal.patching.directions import TakenDirection
from refusal.patching.material import Pairs
from refusal.patching.records import (
    AttentionRecord,
    PairsRecord,
    StructureRecord,
    UnusablePair,
    WriteRecord,
)
from refusal.patching.resampling import mean_over_pairs, pair_weights
from refusal.patching.runs import PairRuns
from refusal.patching.structure import agreement, draw_halves, neuron_attributions
from refusal.patching.units import Side, Unit
from refusal.schemas import Measure
from refusal.sites import Site, SiteKind
from refusal.stats import Estimate, bootstrap

_SEED = 41
_DRAWS_OF_M = 2000
"""Bootstrap draws of the mean m of a side."""


def pairs_record(pairs: Pairs, seed: int) -> PairsRecord:
    """Return the pairs as they are published."""
    maps = pairs.maps
    m_clean, m_corrupted = (
        Measure.of(mean_over_pairs(maps.m(side), maps.categories, _DRAWS_OF_M, np.random.default_rng([seed, _SEED])))
        for side in (Side.CLEAN, Side.CORRUPTED)
    )
    return PairsRecord(
        source=pairs.found.source,
        n=len(maps),
        n_equal_length=sum(pair.is_equal_length for pair in maps.pairs),
        n_validation=0 if pairs.held_out is None else len(pairs.held_out),
        categories=dict(sorted(Counter(maps.categories).items())),
        frame_before=maps.frame.n_before,
        frame_after=maps.frame.n_after,
        m_clean=m_clean,
        m_corrupted=m_corrupted,
        reasons=pairs.found.reasons,
        unusable=tuple(UnusablePair(id=each.id, reason=each.reason) for each in pairs.found.unusable),
    )


def cosine_with_pairs(runs: PairRuns, taken: TakenDirection) -> float:
    """Return the cosine of a direction with the pairs' difference in means at its site."""
    return float(torch.cosine_similarity(taken.direction.raw, mean_difference(runs, taken.site), dim=0))


def write_records(runs: PairRuns, taken: TakenDirection | None, config: Config) -> tuple[str, list[WriteRecord]]:
    """Return the residual site of the direction, and what every writer contributes to m and to the direction.

    Where none is taken, the direction is the difference in means of the last residual state before the last fifth of
    the depth: later ones hold the output direction of any refusal, earlier ones miss what later blocks write.
    """
    layer = max(0, int(0.8 * runs.model.n_layers) - 1)
    site = Site(SiteKind.RESIDUALS, layer) if taken is None else taken.site
    direction = mean_difference(runs, site) if taken is None else taken.direction.raw
    units = [*writers(runs.model, heads=False), *writers(runs.model, heads=True)]
    to_metric = linear_attribution(runs, units)
    to_direction = direction_attribution(runs, units, site, direction)
    generator = np.random.default_rng([config.seed, _SEED])
    weights = pair_weights(runs.categories, config.analysis.bootstrap, generator)
    ones = np.ones(len(runs))
    return str(site), [
        WriteRecord(
            name=unit.name,
            site=str(unit.site),
            layer=unit.site.layer,
            head=unit.head,
            to_metric=Measure.of(_ratio(to_metric[row], runs.gap, weights)),
            to_direction=Measure.of(_ratio(to_direction[row], ones, weights)),
        )
        for row, unit in enumerate(units)
    ]


def _ratio(
    values: Float[np.ndarray, " pair"], over: Float[np.ndarray, " pair"], weights: Float[np.ndarray, "draw pair"]
) -> Estimate:
    return bootstrap(lambda w: (w @ values) / (w @ over), weights)


def attention_records(runs: PairRuns, heads: Sequence[Unit], config: Config) -> list[AttentionRecord]:
    """Return where heads look, as records."""
    generator, n_draws = np.random.default_rng([config.seed, _SEED]), config.analysis.bootstrap
    return [
        AttentionRecord(
            layer=pattern.layer,
            head=pattern.head,
            side=pattern.side.value,
            shares={
                group: Measure.of(mean_over_pairs(pattern.weights[:, place], runs.categories, n_draws, generator))
                for place, group in enumerate(GROUPS)
            },
            per_token={group: _nan_mean(pattern.enrichment[:, place]) for place, group in enumerate(GROUPS)},
        )
        for pattern in attention_patterns(runs, heads)
    ]


def _nan_mean(values: Float[np.ndarray, " pair"]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def structure_records(runs: PairRuns, n_steps: int, seed: int) -> list[StructureRecord]:
    """Return, layer by layer, whether categories use the same neurons; none where too few pairs have a category."""
    halves = draw_halves(runs.categories, np.random.default_rng([seed, _SEED]))
    if halves is None:
        return []
    records = []
    for site in runs.model.neuron_sites():
        found = agreement(site, neuron_attributions(runs, site, n_steps), halves)
        names = found.categories
        records.append(
            StructureRecord(
                site=str(site),
                categories=names,
                raw=as_matrix(found.raw, names),
                ceiling={name: or_none(value) for name, value in zip(names, found.ceiling, strict=True)},
                normalised=as_matrix(found.normalised, names),
                mean=Measure.of(found.mean),
            )
        )
    return records
