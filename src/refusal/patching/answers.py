"""Validation and clamping of one model as records: which ablations, which curves, each kept as it is finished."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refusal.patching.clamping import (
    Clamp,
    DirectionClamp,
    Dose,
    LatentClamp,
    SiteClamping,
    choose_site,
    direction_clamps,
    dose_response,
    rate_sites,
)
from refusal.patching.directions import given_direction
from refusal.patching.findings import Findings
from refusal.patching.generation import Answering, Refusals
from refusal.patching.latents import CircuitLatents
from refusal.patching.localise import Located
from refusal.patching.material import Material
from refusal.patching.records import (
    ClampRecord,
    ConditionRecord,
    DoseRecord,
    RefusalsRecord,
    SiteClampRecord,
)
from refusal.patching.runs import PairRuns
from refusal.patching.units import Ablation
from refusal.patching.validation import Removal, fills_layers, part_of, validate
from refusal.schemas import Rate

VALIDATED = ("heads", "mlp")
"""Kinds whose critical units are ablated while the model answers."""
_SEED = 37
TOP_LATENTS = 5
"""Latents of each circuit that are clamped together."""


class Answers:
    """Answers of one model under ablation and clamping.

    Args:
        material: The model and its pairs.
    """

    def __init__(self, material: Material) -> None:
        self.settings = material.config.patching
        self.maps: PairRuns = material.pairs.maps
        assert material.pairs.held_out is not None
        self.held_out: PairRuns = material.pairs.held_out
        kept = material.paths.patching(material.name) / "judged.jsonl"
        self.answering = Answering(material.model, material.config, kept)
        self._seed = material.config.seed
        self.notices: list[str] = []

    def validation(self, kind: str, chosen: list[Located], findings: Findings) -> list[ConditionRecord]:
        """Return the refusals with the critical units of a kind ablated, kept, and with random ones."""
        every = findings.every(kind)
        sites = sorted({unit.site for unit in every})
        removal = Removal(
            self.held_out, self.maps, Ablation(self.settings.validate_with), sites, on_answer=self.settings.on_answer
        )
        units = [each.unit for each in chosen]
        generator = np.random.default_rng([self._seed, _SEED])
        found = validate(self.answering, removal, units, every, self.settings.random_sets, generator)
        return [
            ConditionRecord(
                kind="heads" if kind == "heads" else "mlp",
                name=each.name,
                n_units=each.n_units,
                draws=each.draws,
                refusals=refusals_record(each.refusals),
            )
            for each in found
        ]

    def direction(self) -> list[ClampRecord]:
        """Return the dose-response of the refusal direction, and of random directions as control."""
        if self.settings.direction is None:
            clamps = direction_clamps(self.maps)
            source = "difference in means of the pairs of the maps at the readout position"
        else:
            given = given_direction(self.settings.direction, self.maps.model)
            clamps = [DirectionClamp.of(self.maps, given.site, given.direction)]
            source = f"{self.settings.direction} (position {given.position}, layer {given.layer})"
        rated = rate_sites(self.maps, clamps)
        site = choose_site(rated, self.maps.model.n_layers)
        clamp = next(each for each in clamps if each.site == site)
        records = [self._curve("direction", [clamp], source, rated)]
        if self.settings.random_sets:
            generator = np.random.default_rng([self._seed, _SEED, 1])
            random = [clamp.randomised(self.maps, generator) for _ in range(self.settings.random_sets)]
            records.append(self._curve("random directions", random, f"{len(random)} random directions", []))
        return records

    def latents(self, held: list[CircuitLatents]) -> list[ClampRecord]:
        """Return the dose-response of the largest latents of all circuits, at the site at which they do most."""
        chosen = {each.site: _largest(each) for each in held}
        clamps = [LatentClamp.of(self.maps, each.site, each.sae, chosen[each.site]) for each in held]
        rated = rate_sites(self.maps, clamps)
        site = choose_site(rated, self.maps.model.n_layers)
        clamp = next(each for each in clamps if each.site == site)
        source = f"the {TOP_LATENTS} latents of largest attribution of each category's circuit"
        return [self._curve("latents", [clamp], source, rated)]

    def _curve(self, what: str, clamps: Sequence[Clamp], source: str, rated: Sequence[SiteClamping]) -> ClampRecord:
        doses = dose_response(self.answering, self.held_out, clamps, self.settings.strengths)
        first = clamps[0]
        return ClampRecord(
            what=what,  # type: ignore[arg-type]
            site=str(first.site),
            source=source,
            latents=tuple(first.latents.tolist()) if isinstance(first, LatentClamp) else (),
            sites=tuple(
                SiteClampRecord(site=str(each.site), forced=each.forced, suppressed=each.suppressed) for each in rated
            ),
            doses=tuple(_dose_record(dose) for dose in doses),
        )


def control_notice(kind: str, chosen: list[Located], findings: Findings) -> str | None:
    """Return what is to be said of the control of a validation; None when every layer has enough other units."""
    parts, every = [part_of(each.unit) for each in chosen], [part_of(unit) for unit in findings.every(kind)]
    if not parts or fills_layers(parts, every):
        return None
    if len(parts) == len(every):
        return f"{kind}: all {len(every)} units are critical, so there is no control"
    n_control = min(len(parts), len(every) - len(parts))
    short = f" and only {n_control} of them" if n_control < len(parts) else ""
    return (
        f"{kind}: the layers of the critical units have too few others, so the control has units of other layers{short}"
    )


def _largest(held: CircuitLatents) -> list[int]:
    """Return the latents of largest attribution of each circuit."""
    found: set[int] = set()
    for category in sorted({name for names in held.circuits.values() for name in names}):
        own = [latent for latent in held.latents if category in held.circuits[latent]]
        found |= set(sorted(own, key=lambda latent: (-abs(held.attribution[latent]), latent))[:TOP_LATENTS])
    return sorted(found)


def refusals_record(found: Refusals) -> RefusalsRecord:
    """Return refusals as they are published."""
    rate = found.rate
    return RefusalsRecord(
        refusal=Rate(value=rate.value, low=rate.low, high=rate.high, k=found.n_refused, n=rate.n),
        n_unclear=found.n_unclear,
    )


def _dose_record(dose: Dose) -> DoseRecord:
    return DoseRecord(
        strength=dose.strength, suppress=refusals_record(dose.suppress), force=refusals_record(dose.force)
    )
