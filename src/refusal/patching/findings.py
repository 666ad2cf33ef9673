"""What the maps say: every map located, the critical units of each kind, and the agreement of estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refusal.config.patching import PatchingConfig
from refusal.patching.attribution import agreement
from refusal.patching.localise import Criteria, Located, critical, locate
from refusal.patching.maps import Map, find, in_common
from refusal.patching.records import AgreementRecord, MapRecord, UnitRecord
from refusal.patching.tokens import EVERYWHERE, READOUT, Place
from refusal.patching.units import Ablation, Mode, Unit
from refusal.schemas import Measure

SEED = 31
"""Of the draws of intervals and signs, besides the seed of the configuration."""


@dataclass(frozen=True)
class LocatedMap:
    """A map with what is known of each unit."""

    map: Map
    units: list[Located]

    def at(self, place: Place) -> list[Located]:
        """Return the units of one place."""
        return [each for each in self.units if each.unit.place == place]

    @property
    def record(self) -> MapRecord:
        """The map as it is published."""
        patch = self.map.patch
        return MapRecord(
            kind=self.map.kind,
            mode=patch.mode.value,
            ablation=patch.ablation.value,
            method=self.map.method,
            units=tuple(unit_record(each, patch.mode) for each in self.units),
        )


def unit_record(located: Located, mode: Mode) -> UnitRecord:
    """Return a unit as it is published."""
    unit, value = located.unit, located.effect.value
    score = None if value is None else (value if mode is Mode.DENOISE else 1 - value)
    return UnitRecord(
        name=unit.name,
        site=str(unit.site),
        layer=unit.site.layer,
        head=unit.head,
        latent=unit.latent,
        place=str(unit.place),
        effect=Measure.of(located.effect),
        score=score,
        p=located.p,
        p_corrected=located.p_corrected,
        is_critical=located.is_critical,
    )


def criteria_of(settings: PatchingConfig, n_draws: int) -> Criteria:
    """Return when a unit is critical, as configured."""
    return Criteria(settings.correction, settings.alpha, settings.min_effect, n_draws)


def locate_all(maps: Sequence[Map], categories: Sequence[str], seed: int, criteria: Criteria) -> list[LocatedMap]:
    """Return every map with intervals and p-values; the draws do not depend on which other maps there are."""
    return [
        LocatedMap(each, locate(each.metric, categories, np.random.default_rng([seed, SEED]), criteria))
        for each in maps
    ]


class Findings:
    """What the maps of a model say.

    Args:
        located: Every map.
        settings: Which of them counts where several could.
    """

    def __init__(self, located: Sequence[LocatedMap], settings: PatchingConfig) -> None:
        self.located = list(located)
        self._settings = settings

    def deciding(self, kind: str) -> LocatedMap | None:
        """Return the map that says which units of a kind are critical.

        Measured before estimated, noising (what is necessary) before denoising, the first ablation named.
        """
        methods = ("exact", "integrated", "gradient")
        modes = [mode for mode in (Mode.NOISE, Mode.DENOISE) if mode.value in self._settings.modes]
        for method in methods:
            for mode in modes:
                for ablation in self._settings.ablations:
                    found = self._find(kind, method, mode, Ablation(ablation))
                    if found is not None:
                        return found
        return None

    def _find(self, kind: str, method: str, mode: Mode, ablation: Ablation) -> LocatedMap | None:
        wanted = find([each.map for each in self.located], kind, method, mode, ablation)  # type: ignore[arg-type]
        return next((each for each in self.located if each.map is wanted), None)

    def critical(self, kind: str, most: int | None = None) -> list[Located]:
        """Return the critical units of a kind: at all positions where that was measured, else at the readout."""
        deciding = self.deciding(kind)
        if deciding is None:
            return []
        at = deciding.at(EVERYWHERE)
        return critical(at if any(each.effect.n for each in at) else deciding.at(READOUT), most)

    def every(self, kind: str) -> list[Unit]:
        """Return all units of a kind, at the readout position."""
        deciding = self.deciding(kind)
        return [] if deciding is None else [each.unit for each in deciding.at(READOUT)]

    def agreements(self) -> tuple[AgreementRecord, ...]:
        """Return how well estimates follow exact patching, map by map."""
        found = []
        for each in self.located:
            if each.map.method not in ("gradient", "integrated"):
                continue
            exact = self._find(each.map.kind, "exact", each.map.patch.mode, each.map.patch.ablation)
            if exact is None:
                continue
            both = agreement(exact.map.metric, in_common(exact.map.metric, each.map.metric))
            found.append(
                AgreementRecord(
                    kind=each.map.kind,
                    mode=each.map.patch.mode.value,
                    ablation=each.map.patch.ablation.value,
                    method=each.map.method,
                    spearman=both.spearman,
                    pearson=both.pearson,
                    n=both.n,
                )
            )
        return tuple(found)
