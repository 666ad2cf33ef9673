"""Validation and clamping of one model as records: which ablations, which curves, each kept as it is finished."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refusal.patching.clamping import (
    DirectionHold,
    Hold,
    LatentHold,
    choose_hold,
    direction_holds,
    dose_response,
    rate_site,
)
from refusal.patching.directions import TakenDirection
from refusal.patching.findings import Findings
from refusal.patching.latents import CircuitLatents
from refusal.patching.localise import Located
from refusal.patching.material import Material
from refusal.patching.records import ClampRecord, ConditionRecord, SiteClampRecord
from refusal.patching.runs import PairRuns
from refusal.patching.units import Ablation
from refusal.patching.validation import Removal, fills_layers, parts_of, random_parts, validate
from refusal.steering import Region
from refusal.steering.answering import Answerer
from refusal.steering.run import Runs

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
        runs = Runs(material.model, batch_size=material.config.batch_size)
        self.answerer = Answerer(runs, material.config, kept)
        self._seed = material.config.seed

    def validation(self, kind: str, chosen: list[Located], findings: Findings) -> list[ConditionRecord]:
        """Return the refusals with the critical units of a kind ablated, kept, and with random ones."""
        every = findings.every(kind)
        sites = sorted({unit.site for unit in every})
        removal = Removal(
            self.held_out, self.maps, Ablation(self.settings.validate_with), sites, on_answer=self.settings.on_answer
        )
        units, generator = [each.unit for each in chosen], np.random.default_rng([self._seed, _SEED])
        parts, others = parts_of(units), parts_of(every)
        random = [random_parts(parts, others, generator) for _ in range(self.settings.random_sets)]
        return validate(self.answerer, removal, "heads" if kind == "heads" else "mlp", units, every, random)

    def direction(self, taken: TakenDirection | None) -> list[ClampRecord]:
        """Return the dose-response of the refusal direction, and of random directions as control."""
        if taken is None:
            holds = direction_holds(self.maps)
            source = "difference in means of the pairs of the maps at the readout position"
        else:
            holds, source = [DirectionHold.of(self.maps, taken.site, taken.direction.raw)], taken.source
        rated = [rate_site(self.maps, each) for each in holds]
        hold = choose_hold(holds, rated, self.maps.model.n_layers)
        records = [self._curve("direction", [hold], source, rated)]
        if self.settings.random_sets:
            random = hold.randomised(self.maps, self.settings.random_sets, self._seed)
            records.append(self._curve("random directions", random, f"{len(random)} random directions", []))
        return records

    def latents(self, held: list[CircuitLatents]) -> list[ClampRecord]:
        """Return the dose-response of the largest latents of all circuits, at the site at which they do most."""
        chosen = {each.site: _largest(each) for each in held}
        holds = [LatentHold.of(self.maps, each.site, each.sae, chosen[each.site]) for each in held]
        rated = [rate_site(self.maps, each) for each in holds]
        hold = choose_hold(holds, rated, self.maps.model.n_layers)
        source = f"the {TOP_LATENTS} latents of largest attribution of each category's circuit"
        return [self._curve("latents", [hold], source, rated)]

    def _curve(self, what: str, holds: Sequence[Hold], source: str, rated: Sequence[SiteClampRecord]) -> ClampRecord:
        region = Region.ANSWER if self.settings.on_answer else Region.READOUT
        first = holds[0]
        return ClampRecord(
            what=what,  # type: ignore[arg-type]
            site=str(first.site),
            source=source,
            latents=tuple(first.latents.tolist()) if isinstance(first, LatentHold) else (),
            sites=tuple(rated),
            doses=tuple(dose_response(self.answerer, self.held_out, holds, self.settings.strengths, region)),
        )


def control_notice(kind: str, chosen: list[Located], findings: Findings) -> str | None:
    """Return what is to be said of the control of a validation; None when every layer has enough other units."""
    parts, every = parts_of([each.unit for each in chosen]), parts_of(findings.every(kind))
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
