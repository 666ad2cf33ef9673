"""Which maps there are, and how each is made: measured, estimated, or direct; each kept as soon as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from refusal.config.patching import PatchingConfig
from refusal.errors import InputError
from refusal.patching.attribution import estimate_units
from refusal.patching.direct import direct_effects, writers
from refusal.patching.exact import Progress, patch_units
from refusal.patching.kept import Kept
from refusal.patching.records import Method
from refusal.patching.runs import PairRuns
from refusal.patching.tokens import EVERYWHERE, READOUT, Place, places
from refusal.patching.units import Ablation, Mode, Patch, PatchedMetric, Unit, head_units, layer_units
from refusal.resources import is_out_of_memory
from refusal.sites import SiteKind

WRITERS = "writers"
"""What the kind of a map is called that holds attention, MLPs and heads together."""


@dataclass(frozen=True)
class Map:
    """One map."""

    kind: str
    """A kind of site, or `writers`."""
    patch: Patch
    method: Method
    metric: PatchedMetric


@dataclass(frozen=True)
class _Plan:
    """A map that is to be made."""

    kind: str
    patch: Patch
    method: Method
    units: tuple[Unit, ...]

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.kind}_{self.patch.mode}_{self.patch.ablation}_{self.method}"


def patches(settings: PatchingConfig) -> list[Patch]:
    """Return the ways of patching; zeros in the corrupted run restore nothing, so that one is left out."""
    found = [Patch(Mode(mode), Ablation(ablation)) for mode in settings.modes for ablation in settings.ablations]
    return [patch for patch in found if not (patch.mode is Mode.DENOISE and patch.ablation is Ablation.ZERO)]


def units_of(runs: PairRuns, kind: str, chosen: Sequence[Place]) -> tuple[Unit, ...]:
    """Return the units of a kind at some places; heads at the readout position and everywhere only."""
    if kind == SiteKind.HEADS:
        return tuple(head_units(runs.model, [place for place in chosen if place in (READOUT, EVERYWHERE)]))
    return tuple(layer_units(runs.model, SiteKind(kind), chosen))


def plan_maps(runs: PairRuns, settings: PatchingConfig) -> Iterator[_Plan]:
    """Yield the maps of an analysis, in the order in which they are made: what is measured first."""
    n_template = settings.template_positions
    some = places(runs.pairs, runs.frame, n_template, each_position=settings.each_position)
    every = places(runs.pairs, runs.frame, n_template, each_position=True)
    estimates: list[Method] = ["gradient", *(["integrated"] if settings.ig_steps else [])]  # type: ignore[list-item]
    if settings.method == "exact":
        for kind in settings.kinds:
            for patch in patches(settings):
                yield _Plan(kind, patch, "exact", units_of(runs, kind, some))
    direct = tuple([*writers(runs.model, heads=False), *writers(runs.model, heads=True)])
    for mode in settings.modes:
        yield _Plan(WRITERS, Patch(Mode(mode)), "direct", direct)
    for kind in settings.kinds:
        for patch in patches(settings):
            for method in estimates:
                yield _Plan(kind, patch, method, units_of(runs, kind, every))


@contextmanager
def told_when_memory_runs_out(batch_size: int) -> Iterator[None]:
    """Say what to do when memory runs out inside the `with`.

    Raises:
        InputError: Memory ran out; what was finished is kept.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"batch_size: memory ran out while patching {batch_size} pairs at once; set batch_size: "
            f"{max(1, batch_size // 2)}, patching.method: attribution, fewer patching.kinds, or dtype: bfloat16; maps "
            "that are finished are kept"
        ) from error


def make_maps(runs: PairRuns, settings: PatchingConfig, kept: Kept) -> list[Map]:
    """Return every map; what was finished earlier is read."""
    found = []
    planned = list(plan_maps(runs, settings))
    total = sum(len(plan.units) * len(runs) for plan in planned)
    with tqdm(total=total, desc=f"patching: {runs.model.name}", unit="patch", disable=None) as bar:
        for plan in planned:
            steps = {"steps": settings.ig_steps} if plan.method == "integrated" else {}
            before = bar.n
            make = _maker(runs, plan, settings, bar.update)
            with told_when_memory_runs_out(runs.batch_size):
                metric = kept.map(plan.name, plan.patch, plan.units, steps, make)
            bar.update(before + len(plan.units) * len(runs) - bar.n)
            found.append(Map(plan.kind, plan.patch, plan.method, metric))
    return found


def _maker(runs: PairRuns, plan: _Plan, settings: PatchingConfig, progress: Progress) -> Callable[[], PatchedMetric]:
    def make() -> PatchedMetric:
        """Make the map."""
        if plan.method == "exact":
            return patch_units(runs, plan.units, plan.patch, progress)
        if plan.method == "direct":
            return direct_effects(runs, plan.units, plan.patch, progress)
        n_steps = settings.ig_steps if plan.method == "integrated" else 0
        return estimate_units(runs, plan.units, plan.patch, n_steps, progress)

    return make


def find(maps: Sequence[Map], kind: str, method: Method, mode: Mode, ablation: Ablation) -> Map | None:
    """Return one of the maps; None where it was not made."""
    wanted = (kind, method, Patch(mode, ablation))
    return next((each for each in maps if (each.kind, each.method, each.patch) == wanted), None)


def in_common(exact: PatchedMetric, estimated: PatchedMetric) -> PatchedMetric:
    """Return the units of an estimate that exact patching measured too, in its order."""
    row = {unit: place for place, unit in enumerate(estimated.units)}
    return estimated.of([row[unit] for unit in exact.units])
