"""Attribution patching: the effect of every patch estimated from gradients.

With x the value in the run that is patched and x' the value that would be put in,

    m_patched ~ m + sum over patched entries of (x' - x) * g

- g = dm/dx at x: one backward pass serves all sites, heads and positions (Syed et al. 2310.10348). It is the tangent,
  so it misses what saturates or switches on along the way.
- g = mean over K midpoints of the straight path from x to x', site by site (integrated gradients, Sundararajan et al.
  1703.01365; for circuits Hanna et al. 2403.17806). Over a whole site the estimates then sum to the exact effect, up
  to the midpoint rule.

How well the estimates agree with exact patching is reported wherever both are measured (`agreement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refusal.interventions import Transform, edit
from refusal.models import SiteUse
from refusal.patching.exact import Progress
from refusal.patching.runs import PairBatch, PairRuns
from refusal.patching.units import Patch, PatchedMetric, Side, Unit, slice_of
from refusal.patching.values import PatchValues
from refusal.sites import Site
from refusal.stats import spearman


def estimate_units(
    runs: PairRuns, units: Sequence[Unit], patch: Patch, n_steps: int = 0, progress: Progress = lambda done: None
) -> PatchedMetric:
    """Return the estimate of m under every patch, for every pair.

    Args:
        runs: The pairs.
        units: What would be patched, each by itself.
        patch: Which way, and with which values.
        n_steps: Points K of the integrated gradients; 0: the gradient at the run that is patched.
        progress: Told how many estimates have been made.
    """
    sites = sorted({unit.site for unit in units})
    values = PatchValues(runs, patch, sites)
    base_m = runs.m(patch.mode.base)
    patched = np.full((len(units), len(runs)), np.nan)
    for batch in runs.batches():
        puts = values.everywhere(batch)
        parts = _tangent(runs, batch, patch, puts) if n_steps == 0 else _integrated(runs, batch, patch, puts, n_steps)
        masks = {place: batch.mask(place, runs.frame) for place in {unit.place for unit in units}}
        rows = np.array(batch.rows)
        for row, unit in enumerate(units):
            part, mask = parts[unit.site], masks[unit.place]
            entries = slice_of(unit, part.shape[-1], runs.model.n_heads)
            change = (part[..., entries].sum(-1) * mask).sum(-1).double().numpy()
            is_patched = mask.any(1).numpy()
            patched[row, rows[is_patched]] = base_m[rows[is_patched]] + change[is_patched]
        progress(len(units) * len(rows))
    return PatchedMetric(patch, tuple(units), patched, runs.m(Side.CLEAN), runs.m(Side.CORRUPTED))


def _tangent(
    runs: PairRuns, batch: PairBatch, patch: Patch, puts: dict[Site, Tensor]
) -> dict[Site, Float[Tensor, "batch pos _"]]:
    """Return (x' - x) * dm/dx of every entry of every site, from one forward and one backward pass."""
    shifts: dict[Site, Tensor] = {}
    acts: dict[Site, Tensor] = {}

    def shift(site: Site) -> SiteUse:
        """Return what keeps a site's value and adds a shift of 0, whose gradient is that of the value."""

        def use(value: Tensor) -> Tensor:
            """Keep the value and add the shift."""
            acts[site] = value.detach()
            shifts[site] = torch.zeros_like(value, requires_grad=True)
            return value + shifts[site]

        return use

    with torch.enable_grad(), ExitStack() as stack:
        for site in puts:
            stack.enter_context(runs.model.on_site(site, shift(site)))
        m = runs.metric(runs.logits(batch.tokens[patch.mode.base]))
        gradients = torch.autograd.grad(m.sum(), [shifts[site] for site in puts])
    return {
        site: ((puts[site].float() - acts[site].float()) * gradient.float()).cpu()
        for site, gradient in zip(puts, gradients, strict=True)
    }


@dataclass(frozen=True)
class _Step:
    """A site at a point of its path."""

    site: Site
    alpha: float


def _integrated(
    runs: PairRuns, batch: PairBatch, patch: Patch, puts: dict[Site, Tensor], n_steps: int
) -> dict[Site, Float[Tensor, "batch pos _"]]:
    """Return (x' - x) * mean gradient over the path; sites and steps are rows of one batch."""
    base = runs.everywhere(batch, patch.mode.base, list(puts))
    totals = {site: torch.zeros_like(acts, dtype=torch.float32) for site, acts in base.items()}
    steps = [_Step(site, (step + 0.5) / n_steps) for site in puts for step in range(n_steps)]
    size = batch.variants_that_fit()
    for first in range(0, len(steps), size):
        chunk = steps[first : first + size]
        leaves = [
            (base[step.site] + step.alpha * (puts[step.site] - base[step.site])).detach().requires_grad_()
            for step in chunk
        ]
        for step, gradient in zip(chunk, _gradients_at(runs, batch, patch, chunk, leaves), strict=True):
            totals[step.site] += gradient.float() / n_steps
    return {site: ((puts[site].float() - base[site].float()) * total).cpu() for site, total in totals.items()}


def _gradients_at(
    runs: PairRuns, batch: PairBatch, patch: Patch, steps: Sequence[_Step], leaves: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return dm/dx at each leaf; row group i of the batch has leaf i in place of its site's value."""

    def put(site: Site) -> Transform:
        """Return what puts the leaves of a site into their rows."""

        def use(value: Tensor) -> Tensor:
            """Put them in."""
            rows = list(value.unflatten(0, (len(steps), -1)).unbind(0))
            for row, step in enumerate(steps):
                if step.site == site:
                    rows[row] = leaves[row]
            return torch.cat(rows)

        return use

    with torch.enable_grad(), edit(runs.model, {site: put(site) for site in {step.site for step in steps}}):
        m = runs.metric(runs.logits(batch.tokens[patch.mode.base], len(steps)))
        return torch.autograd.grad(m.sum(), leaves)


@dataclass(frozen=True)
class Agreement:
    """How well an estimate follows exact patching, over the units of a map; None where it cannot be said."""

    spearman: float | None
    """Rank correlation of the mean effects: are the same units at the top?"""
    pearson: float | None
    """Linear correlation of the mean effects."""
    n: int
    """Units that both measured."""


def agreement(exact: PatchedMetric, estimated: PatchedMetric) -> Agreement:
    """Return the correlations between exact and estimated mean effects of the same units.

    Raises:
        ValueError: The maps are not of the same units and way of patching.
    """
    if exact.units != estimated.units or exact.patch != estimated.patch:
        raise ValueError("only maps of the same units and way of patching can be compared")
    first, second = (mean_effects(each) for each in (exact, estimated))
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    return Agreement(spearman(first, second), pearson(first, second), int(both.sum()))


def mean_effects(metric: PatchedMetric) -> Float[np.ndarray, " unit"]:
    """Return the effect of each unit over all pairs: mean change / mean gap; nan where no pair was measured."""
    is_known = np.isfinite(metric.patched)
    gap = (is_known * metric.gap).sum(1)
    change = np.where(is_known, metric.change, 0).sum(1)
    return np.where(gap > 0, change / np.where(gap > 0, gap, 1), np.nan)


def pearson(first: Float[np.ndarray, " value"], second: Float[np.ndarray, " value"]) -> float | None:
    """Return Pearson's correlation; None below two values or when one side is constant.

    >>> pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    1.0
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    a, b = first - first.mean(), second - second.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))
