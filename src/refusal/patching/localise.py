"""Which units of a map matter: effects with intervals over pairs, and p-values corrected for the number of units.

- effect of a unit = sum of its changes of m / sum of the gaps, over the pairs in which it was measured;
- interval: percentile bootstrap over pairs, drawn within categories (`resampling`);
- p: sign flips of the pairs' changes, two-sided; corrected over all units of the map (`refusal.multiplicity`);
- critical: corrected p at most alpha, and an effect of at least `min_effect`. A unit whose effect is as surely below 0
  works against refusal; it is in the table, not among the critical ones.

A ratio of sums, not a mean of ratios: pairs with a small gap have noisy ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator

from refusal.measures import or_none
from refusal.multiplicity import benjamini_hochberg, flips_needed, holm, sign_flip_p
from refusal.patching.resampling import pair_weights
from refusal.patching.units import PatchedMetric, Unit
from refusal.stats import Estimate, bootstrap

Correction = Literal["holm", "benjamini-hochberg"]
_CORRECTIONS = {"holm": holm, "benjamini-hochberg": benjamini_hochberg}


@dataclass(frozen=True)
class Criteria:
    """When a unit is critical."""

    correction: Correction = "holm"
    alpha: float = 0.05
    """Corrected p at most this."""
    min_effect: float = 0.05
    """Effect at least this, as a share of the gap."""
    n_draws: int = 2000
    """Bootstrap draws."""


@dataclass(frozen=True)
class Located:
    """A unit with what is known of its effect."""

    unit: Unit
    effect: Estimate
    """Share of the gap; 0 nothing, 1 all of it; never clipped."""
    p: float | None
    """Sign-flip p, two-sided; None where the unit was measured in no pair."""
    p_corrected: float | None
    is_critical: bool


def locate(
    found: PatchedMetric, strata: Sequence[str], generator: Generator, criteria: Criteria | None = None
) -> list[Located]:
    """Return every unit of a map with interval and p-values, in the order of the map.

    Args:
        found: The map; its units are the family of tests that the correction is for.
        strata: Category of each pair.
        generator: Draws pairs and signs.
        criteria: When a unit is critical; None: the defaults.
    """
    criteria = criteria or Criteria()
    weights = pair_weights(strata, criteria.n_draws, generator)
    n_flips = flips_needed(len(found.units), criteria.alpha)
    p = sign_flip_p(found.change, n_flips, generator)
    corrected = _CORRECTIONS[criteria.correction](p)
    located = []
    for row, unit in enumerate(found.units):
        effect = _effect(found, row, weights)
        is_large = effect.value is not None and effect.value >= criteria.min_effect
        is_critical = bool(is_large and corrected[row] <= criteria.alpha)
        located.append(Located(unit, effect, or_none(p[row]), or_none(corrected[row]), is_critical))
    return located


def _effect(found: PatchedMetric, row: int, weights: np.ndarray) -> Estimate:
    is_known = np.isfinite(found.patched[row])
    if not is_known.any():
        return Estimate(None, None, None, 0, method="bootstrap", reason="the position corresponds in no pair")
    change, gap = found.change[row, is_known], found.gap[is_known]
    return bootstrap(lambda w: (w @ change) / (w @ gap), weights[:, is_known])


def critical(located: Sequence[Located], most: int | None = None) -> list[Located]:
    """Return the critical units, largest effect first, at most `most`."""
    chosen = [each for each in located if each.is_critical]
    return sorted(chosen, key=lambda each: (-(each.effect.value or 0.0), str(each.unit)))[:most]


def by_layer(located: Sequence[Located]) -> dict[int, Located]:
    """Return for each layer its unit of largest effect."""
    best: dict[int, Located] = {}
    for each in located:
        now = best.get(each.unit.site.layer)
        if each.effect.value is not None and (now is None or each.effect.value > (now.effect.value or 0.0)):
            best[each.unit.site.layer] = each
    return best
