"""Force and suppress refusal: a direction or a set of latents is held at a value, and the model answers.

Strength a sets the coordinate c of each prompt, at the readout position of a site (with `on_answer` at every token of
the answer too), to

    c(a) = c_complied + a (c_refused - c_complied),

c_refused and c_complied being its means over the clean and the corrupted prompts of the pairs that made the maps. a = 0
is what complied prompts have, a = 1 what refused ones have, beyond both it is more of either. Rates are measured on
held-out pairs: on refused prompts a <= 0 suppresses, on complied ones a >= 1 forces, and a curve over a is the
dose-response. As control random unit directions are held at their own mean plus (a - 1/2) times the same distance.

For a direction c = x . u, u the unit difference in means; for latents c = f, one coordinate each. The site is the one
at which clamping does most to m on the pairs of the maps, the smaller of forcing and suppressing counted
(`choose_site`).
Source: Arditi et al. 2406.11717 (directions), Templeton et al. 2024 (clamping latents).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.labels.behaviour import Behaviour
from refusal.patching.direct import mean_difference
from refusal.patching.generation import Answering, Change, Refusals, Rows, from_readout
from refusal.patching.runs import PairRuns
from refusal.patching.units import Side
from refusal.patching.validation import clean_prompts, corrupted_prompts
from refusal.readout import Edit
from refusal.sae.base import SparseAutoencoder
from refusal.sites import Site, SiteKind, all_sites

DEPTH_LIMIT = 0.8
"""Sites in the last fifth of the depth are not chosen: there the output direction of any refusal is the same."""

Hold = Callable[[Float[Tensor, "*batch d_model"]], Float[Tensor, "*batch d_model"]]
"""Holds coordinates of an activation at fixed values."""


@dataclass(frozen=True)
class DirectionClamp:
    """Coordinates along a direction."""

    site: Site
    unit: Float[Tensor, " d_model"]
    """Unit vector."""
    complied: float
    """Mean coordinate of complied prompts."""
    refused: float
    """Mean coordinate of refused prompts."""

    @classmethod
    def of(cls, runs: PairRuns, site: Site, direction: Tensor | None = None) -> DirectionClamp:
        """Return the clamp of a direction, or of the difference in means, at a site."""
        difference = mean_difference(runs, site) if direction is None else direction.double()
        unit = difference / difference.norm().clamp_min(1e-12)
        means = [float((runs.readout(side, [site])[site].double() @ unit).mean()) for side in Side]
        return cls(site, unit.float(), means[1], means[0])

    def at(self, strength: float) -> Hold:
        """Return what holds the coordinate at a strength."""
        value = self.complied + strength * (self.refused - self.complied)

        def hold(acts: Tensor) -> Tensor:
            """Move along the direction until the coordinate has its value."""
            unit = self.unit.to(acts.device)
            along = acts.float() @ unit
            return (acts.float() + (value - along)[..., None] * unit).to(acts)

        return hold

    def randomised(self, runs: PairRuns, generator: np.random.Generator) -> DirectionClamp:
        """Return a random direction whose two values lie as far apart, around its own mean."""
        drawn = torch.from_numpy(generator.standard_normal(len(self.unit)))
        unit = drawn / drawn.norm()
        acts = torch.cat([runs.readout(side, [self.site])[self.site].double() for side in Side])
        centre, half = float((acts @ unit).mean()), (self.refused - self.complied) / 2
        return DirectionClamp(self.site, unit.float(), centre - half, centre + half)


@dataclass(frozen=True)
class LatentClamp:
    """Latents of one SAE."""

    site: Site
    sae: SparseAutoencoder
    latents: Int[Tensor, " node"]
    complied: Float[Tensor, " node"]
    """Mean activation on complied prompts."""
    refused: Float[Tensor, " node"]
    """Mean activation on refused prompts."""

    @classmethod
    def of(cls, runs: PairRuns, site: Site, sae: SparseAutoencoder, latents: Sequence[int]) -> LatentClamp:
        """Return the clamp of some latents of a site's SAE."""
        chosen = torch.tensor(sorted(latents))
        means = [sae.encode(runs.readout(side, [site])[site])[:, chosen].mean(0).detach() for side in Side]
        return cls(site, sae, chosen, means[1], means[0])

    def at(self, strength: float) -> Hold:
        """Return what holds the latents at a strength; what the SAE does not reconstruct stays as it is."""
        values = self.complied + strength * (self.refused - self.complied)
        decoder = self.sae.W_dec[self.latents].detach()

        def hold(acts: Tensor) -> Tensor:
            """Add the decoded change of the latents."""
            now = self.sae.encode(acts.float().cpu())[..., self.latents]
            return (acts.float() + ((values - now) @ decoder).to(acts.device)).to(acts)

        return hold


Clamp = DirectionClamp | LatentClamp


@dataclass(frozen=True)
class SiteClamping:
    """What clamping at a site does to m on the pairs of the maps, as shares of the gap."""

    site: Site
    forced: float
    """(m of corrupted at strength 1 - m_corrupted) / gap."""
    suppressed: float
    """(m_clean - m of clean at strength 0) / gap."""

    @property
    def both(self) -> float:
        """The smaller of the two."""
        return min(self.forced, self.suppressed)


@torch.no_grad()
def clamp_m(runs: PairRuns, clamp: Clamp, side: Side, strengths: Sequence[float]) -> Float[np.ndarray, "strength pair"]:
    """Return m of one side's prompts with the readout position clamped at each strength, logits."""
    found = np.zeros((len(strengths), len(runs)))
    holds = [clamp.at(strength) for strength in strengths]

    def change(acts: Tensor) -> Tensor:
        """Hold each variant at its strength."""
        return torch.stack([hold(row) for hold, row in zip(holds, acts, strict=True)])

    for batch in runs.runner[side].batches(range(len(runs))):
        logits = batch.run(len(strengths), [Edit(clamp.site, change)]).logits
        found[:, batch.prompts.numpy()] = runs.metric(logits.float()).cpu().double().numpy()
    return found


def rate_sites(runs: PairRuns, clamps: Sequence[Clamp]) -> list[SiteClamping]:
    """Return what each clamp does to m, on the pairs of the maps."""
    rated = []
    for clamp in clamps:
        forced = clamp_m(runs, clamp, Side.CORRUPTED, [1.0])[0] - runs.m(Side.CORRUPTED)
        suppressed = runs.m(Side.CLEAN) - clamp_m(runs, clamp, Side.CLEAN, [0.0])[0]
        gap = runs.gap.sum()
        rated.append(SiteClamping(clamp.site, float(forced.sum() / gap), float(suppressed.sum() / gap)))
    return rated


def choose_site(rated: Sequence[SiteClamping], n_layers: int) -> Site:
    """Return the site before the last fifth of the depth at which clamping does most both ways; the first of equals."""
    early = [each for each in rated if each.site.layer < max(1, int(DEPTH_LIMIT * n_layers))]
    return max(early or rated, key=lambda each: (round(each.both, 6), -each.site.layer)).site


def direction_clamps(runs: PairRuns) -> list[DirectionClamp]:
    """Return the clamp of the difference in means at every residual site."""
    return [DirectionClamp.of(runs, site) for site in all_sites(runs.model.n_layers, (SiteKind.RESIDUALS,))]


@dataclass(frozen=True)
class Dose:
    """Refusals at one strength."""

    strength: float | None
    """None: nothing clamped."""
    suppress: Refusals
    """Among prompts that are refused as they are."""
    force: Refusals
    """Among prompts that are complied with as they are."""


def dose_response(
    answering: Answering, held_out: PairRuns, clamps: Sequence[Clamp], strengths: Sequence[float]
) -> list[Dose]:
    """Return the refusals on both sides of held-out pairs, untouched and at every strength.

    Args:
        answering: Answers and judges.
        held_out: The pairs.
        clamps: One clamp, or several random ones whose answers are counted together.
        strengths: What the coordinates are set to.
    """
    sides = (clean_prompts(held_out), corrupted_prompts(held_out))
    doses = []
    untouched = [Refusals.of(answering.behaviours(asked)) for asked in sides]
    doses.append(Dose(None, *untouched))
    for strength in strengths:
        found: list[list[Behaviour]] = [[], []]
        for clamp in clamps:
            hold = clamp.at(strength)
            for side, asked in enumerate(sides):
                found[side] += answering.behaviours(asked, _holding(answering, clamp.site, hold))
        doses.append(Dose(strength, *(Refusals.of(each, len(clamps)) for each in found)))
    return doses


def _holding(answering: Answering, site: Site, hold: Hold) -> Change:
    """Return the change that holds coordinates at a site, whichever prompts are answered."""

    def change(rows: Rows) -> AbstractContextManager[None]:
        """Hold them."""
        return from_readout(answering.model, {site: hold}, on_answer=answering.on_answer)

    return change
