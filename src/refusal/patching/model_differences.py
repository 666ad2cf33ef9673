"""How far two models differ on the same pairs: the effect of every unit, and the refusal direction at every layer.

The difference of a unit is paired: its effect on a pair in the second model less that in the first. It comes with a
bootstrap interval over pairs, the effect size d_z (mean of the differences over their standard deviation) and a
sign-flip p, corrected for all units of the map. Source of d_z: Cohen 1988, section 2.3.5; Lakens 2013, Front. Psychol.
4, 863.

Directions can be compared only where both models have the same basis, as a tuned model and its base have; for others a
cosine has no meaning, and the ceilings say nothing about that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from refusal.measures import or_none
from refusal.multiplicity import flips_needed, holm, sign_flip_p
from refusal.patching.attribution import mean_effects
from refusal.patching.records import CellComparison, DirectionComparison
from refusal.patching.resampling import pair_weights
from refusal.patching.runs import PairRuns
from refusal.patching.units import PatchedMetric, Side
from refusal.schemas import Measure
from refusal.sites import Site
from refusal.stats import Estimate, bootstrap, percentile_interval

N_SPLITS = 20
"""Random halves whose cosines are averaged."""


def compare_maps(
    first: PatchedMetric, second: PatchedMetric, categories: Sequence[str], n_draws: int, generator: Generator
) -> list[CellComparison]:
    """Return every unit of two maps of the same units and pairs, with the paired difference of their effects.

    Args:
        first: One model.
        second: The other.
        categories: Category of each pair.
        n_draws: Bootstrap draws.
        generator: Draws pairs and signs.
    """
    weights = pair_weights(categories, n_draws, generator)
    # of the pairs' shares, so that a model with larger logits does not look different for that alone
    differences = second.effect - first.effect
    p = holm(sign_flip_p(differences, flips_needed(len(first.units), 0.05), generator))
    means = [mean_effects(each) for each in (first, second)]
    return [
        CellComparison(
            name=unit.name,
            place=str(unit.place),
            layer=unit.site.layer,
            head=unit.head,
            first=or_none(means[0][row]),
            second=or_none(means[1][row]),
            difference=Measure.of(_mean_difference(differences[row], weights)),
            effect_size=effect_size(differences[row]),
            p_corrected=or_none(p[row]),
        )
        for row, unit in enumerate(first.units)
    ]


def _mean_difference(values: Float[np.ndarray, " pair"], weights: Float[np.ndarray, "draw pair"]) -> Estimate:
    is_known = np.isfinite(values)
    if not is_known.any():
        return Estimate(None, None, None, 0, method="bootstrap", reason="the position corresponds in no pair")
    known = values[is_known]
    return bootstrap(lambda w: (w @ known) / w.sum(axis=1), weights[:, is_known])


def effect_size(differences: Float[np.ndarray, " pair"]) -> float | None:
    """Return d_z, mean over standard deviation (n - 1) of paired differences; None where it is not defined.

    >>> effect_size(np.array([1.0, 2.0, 3.0]))
    2.0
    """
    known = differences[np.isfinite(differences)]
    if len(known) < 2 or known.std(ddof=1) == 0:
        return None
    return float(known.mean() / known.std(ddof=1))


def compare_directions(
    one: PairRuns, other: PairRuns, site: Site, weights: Float[np.ndarray, "draw pair"], generator: Generator
) -> DirectionComparison:
    """Return the cosine of two models' differences in means at a site, beside what halves of the pairs reach in each.

    Args:
        one: A model on the pairs.
        other: The other on the same pairs.
        site: A residual site.
        weights: Bootstrap weights of the pairs.
        generator: Draws halves.
    """
    first, second = (_differences(runs, site) for runs in (one, other))
    value = cosine(first.mean(0), second.mean(0))
    draws = np.array([cosine(w @ first, w @ second) for w in weights])
    return DirectionComparison(
        site=str(site),
        cosine=Measure.of(percentile_interval(value, draws, len(first))),
        ceiling_first=_half_cosine(first, generator),
        ceiling_second=_half_cosine(second, generator),
        norm_first=float(np.linalg.norm(first.mean(0))),
        norm_second=float(np.linalg.norm(second.mean(0))),
    )


def _differences(runs: PairRuns, site: Site) -> Float[np.ndarray, "pair d_model"]:
    clean, corrupted = (runs.readout(side, [site])[site].double().numpy() for side in (Side.CLEAN, Side.CORRUPTED))
    return np.asarray(clean - corrupted)


def cosine(first: Float[np.ndarray, " d_model"], second: Float[np.ndarray, " d_model"]) -> float:
    """Return the cosine of two vectors; nan where one is zero."""
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / norms) if norms > 0 else float("nan")


def _half_cosine(differences: Float[np.ndarray, "pair d_model"], generator: Generator) -> float | None:
    """Return the cosine of the means of two halves of the pairs, mean over random halves."""
    found = []
    for _ in range(N_SPLITS):
        order = generator.permutation(len(differences))
        found.append(cosine(differences[order[::2]].mean(0), differences[order[1::2]].mean(0)))
    return or_none(float(np.mean(found)))
