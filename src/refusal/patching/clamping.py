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
(`choose_hold`).
Source: Arditi et al. 2406.11717 (directions), Templeton et al. 2024 (clamping latents).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.labels.behaviour import Behaviour
from refusal.patching.direct import mean_difference
from refusal.patching.records import DoseRecord, RefusalsRecord, SiteClampRecord
from refusal.patching.runs import PairRuns
from refusal.patching.units import Side
from refusal.patching.validation import prompts_of
from refusal.readout import Edit
from refusal.sae.base import SparseAutoencoder
from refusal.sites import Site, SiteKind, all_sites
from refusal.steering import Clamp, LatentClamp, Region
from refusal.steering.answering import Answerer
from refusal.steering.directional import random_units
from refusal.steering.run import Vary, unchanged

DEPTH_LIMIT = 0.8
"""Sites in the last fifth of the depth are not chosen: there the output direction of any refusal is the same."""
Strengths = Float[Tensor, "row 1 1"]
"""A strength of each row; 0: as complied prompts, 1: as refused ones."""


@dataclass(frozen=True)
class DirectionHold:
    """Coordinates along a direction."""

    site: Site
    unit: Float[Tensor, " d_model"]
    """Unit vector."""
    complied: float
    """Mean coordinate of complied prompts."""
    refused: float
    """Mean coordinate of refused prompts."""

    @classmethod
    def of(cls, runs: PairRuns, site: Site, direction: Tensor | None = None) -> DirectionHold:
        """Return that of a direction, or of the difference in means, at a site."""
        difference = mean_difference(runs, site) if direction is None else direction.double()
        unit = difference / difference.norm().clamp_min(1e-12)
        means = [float((runs.readout(side, [site])[site].double() @ unit).mean()) for side in Side]
        return cls(site, unit.float(), means[1], means[0])

    def at(self, strengths: Strengths, region: Region) -> Clamp:
        """Return what sets the coordinate to the value of each row's strength."""
        values = self.complied + strengths * (self.refused - self.complied)
        return Clamp(self.unit, self.site.layer, values, region)

    def randomised(self, runs: PairRuns, n: int, seed: int) -> list[DirectionHold]:
        """Return random directions whose two values lie as far apart, each around its own mean."""
        acts = torch.cat([runs.readout(side, [self.site])[self.site].double() for side in Side])
        units, half = random_units(n, len(self.unit), seed), (self.refused - self.complied) / 2
        means = [(unit, float((acts @ unit).mean())) for unit in units]
        return [DirectionHold(self.site, unit.float(), mean - half, mean + half) for unit, mean in means]


@dataclass(frozen=True)
class LatentHold:
    """Latents of one SAE."""

    site: Site
    sae: SparseAutoencoder
    latents: Int[Tensor, " node"]
    complied: Float[Tensor, " node"]
    """Mean activation on complied prompts."""
    refused: Float[Tensor, " node"]
    """Mean activation on refused prompts."""

    @classmethod
    def of(cls, runs: PairRuns, site: Site, sae: SparseAutoencoder, latents: Sequence[int]) -> LatentHold:
        """Return that of some latents of a site's SAE."""
        chosen = torch.tensor(sorted(latents))
        means = [sae.encode(runs.readout(side, [site])[site])[:, chosen].mean(0).detach() for side in Side]
        return cls(site, sae, chosen, means[1], means[0])

    def at(self, strengths: Strengths, region: Region) -> LatentClamp:
        """Return what sets the latents to the values of each row's strength."""
        values = self.complied + strengths * (self.refused - self.complied)
        return LatentClamp(self.site, self.sae, self.latents, values, region)


Hold = DirectionHold | LatentHold
AnyHold = TypeVar("AnyHold", DirectionHold, LatentHold)


@torch.no_grad()
def held_m(runs: PairRuns, hold: Hold, side: Side, strength: float) -> Float[np.ndarray, " pair"]:
    """Return m of one side's prompts with the readout position held at a strength, logits."""
    found, clamp = np.zeros(len(runs)), hold.at(torch.full((1, 1, 1), strength), Region.READOUT)
    for batch in runs.runner[side].batches(range(len(runs))):
        logits = batch.run(1, [Edit(hold.site, lambda acts: clamp.change(acts.float()))]).logits[0]
        found[batch.prompts.numpy()] = runs.metric(logits.float()).cpu().double().numpy()
    return found


def rate_site(runs: PairRuns, hold: Hold) -> SiteClampRecord:
    """Return what holding does to m at its site, on the pairs of the maps."""
    forced = held_m(runs, hold, Side.CORRUPTED, 1.0) - runs.m(Side.CORRUPTED)
    suppressed = runs.m(Side.CLEAN) - held_m(runs, hold, Side.CLEAN, 0.0)
    shares = [float(change.sum() / runs.gap.sum()) for change in (forced, suppressed)]
    return SiteClampRecord(site=str(hold.site), forced=shares[0], suppressed=shares[1])


def choose_hold(holds: Sequence[AnyHold], rated: Sequence[SiteClampRecord], n_layers: int) -> AnyHold:
    """Return the one before the last fifth of the depth that does most both ways; the first of equals."""
    every = list(zip(holds, rated, strict=True))
    early = [each for each in every if each[0].site.layer < max(1, int(DEPTH_LIMIT * n_layers))]
    return max(early or every, key=lambda each: (round(each[1].both, 6), -each[0].site.layer))[0]


def direction_holds(runs: PairRuns) -> list[DirectionHold]:
    """Return the difference in means at every residual site."""
    return [DirectionHold.of(runs, site) for site in all_sites(runs.model.n_layers, (SiteKind.RESIDUALS,))]


def dose_response(
    answerer: Answerer, held_out: PairRuns, holds: Sequence[Hold], strengths: Sequence[float], region: Region
) -> list[DoseRecord]:
    """Return the refusals on both sides of held-out pairs, untouched and at every strength.

    Args:
        answerer: Answers and judges.
        held_out: The pairs.
        holds: One, or several random ones whose answers are counted together.
        strengths: What the coordinates are set to.
        region: Where they are.
    """
    sides = [prompts_of(held_out, side) for side in (Side.CLEAN, Side.CORRUPTED)]
    untouched = [answerer.behaviours(asked, 1, unchanged)[0] for asked in sides]
    found: list[list[list[Behaviour]]] = [[[] for _ in strengths] for _ in sides]
    for hold in holds:
        vary = _holding(hold, torch.tensor(strengths), region)
        for asked, of_side in zip(sides, found, strict=True):
            for so_far, more in zip(of_side, answerer.behaviours(asked, len(strengths), vary), strict=True):
                so_far += more
    suppress, force = map(RefusalsRecord.of, untouched)
    doses = [
        DoseRecord(
            strength=strength,
            suppress=RefusalsRecord.of(refused, len(holds)),
            force=RefusalsRecord.of(complied, len(holds)),
        )
        for strength, refused, complied in zip(strengths, *found, strict=True)
    ]
    return [DoseRecord(strength=None, suppress=suppress, force=force), *doses]


def _holding(hold: Hold, strengths: Float[Tensor, " variant"], region: Region) -> Vary:
    """Return what holds each row at the strength of its variant."""
    return lambda variants, prompts: [hold.at(strengths[variants][:, None, None], region)]
