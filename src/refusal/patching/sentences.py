"""What a model's patching says, in sentences: who writes the decision, what it passes through, and whether that holds.

Every sentence carries its numbers with intervals and n, and says when a control does as much. Pure functions of the
results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refusal.patching.records import ClampRecord, ConditionRecord, PatchingResults, RefusalsRecord, UnitRecord
from refusal.patching.written import rate
from refusal.schemas import Measure
from refusal.sites import Site
from refusal.wording import measured

SAME, OTHERS = 0.8, 0.5
"""Agreement of categories over neurons from which on they are called the same, and below which others."""
_PARTS = {"heads": "heads", "mlp": "MLPs"}
_CLAMPED = {"direction": "the direction", "latents": "the latents"}
_VERBS = {"denoise": "restores", "noise": "removes"}


def in_words(results: PatchingResults) -> tuple[str, ...]:
    """Return what was found, a sentence or two for each question, in the order in which one asks."""
    found = [*_writers(results), *_path(results)]
    for kind in _PARTS:
        found += _validation(kind, [each for each in results.validation if each.kind == kind])
    found += [*_clamping(results.clamping), *_structure(results)]
    return tuple(found)


def _writers(results: PatchingResults) -> list[str]:
    """Say which layer writes the decision itself: direct effects of layers, both ways where both were measured."""
    by_name: dict[str, dict[str, UnitRecord]] = {}
    for each in results.maps:
        for unit in each.units:
            if each.kind == "writers" and unit.head is None and unit.effect.value is not None:
                by_name.setdefault(unit.name, {})[each.mode] = unit
    if not by_name:
        return []
    ranked = sorted(by_name, key=lambda name: -min(unit.effect.value or 0.0 for unit in by_name[name].values()))
    critical = [name for name in ranked if all(unit.is_critical for unit in by_name[name].values())]
    if not critical:
        return [f"No layer writes the decision by itself; {_effects(by_name[ranked[0]])} does most."]
    others = f"; then by {', '.join(_effects(by_name[name]) for name in critical[1:3])}" if critical[1:] else ""
    n = results.pairs.n
    return [
        f"The decision is written by {_effects(by_name[critical[0]])}{others}. Later writes were held; shares of the "
        f"gap of m, n = {n} pairs."
    ]


def _effects(units: Mapping[str, UnitRecord]) -> str:
    """Return a layer with what it restores and removes, by mode."""
    name = next(iter(units.values())).name
    said = " and ".join(f"{_VERBS[mode]} {measured(unit.effect)}" for mode, unit in units.items())
    return f"{name} ({said})"


def _path(results: PatchingResults) -> list[str]:
    """Say what the decision passes through, with later layers free."""
    layers = [name for kind in ("attention", "mlp") for name in results.critical_layers.get(kind, ())]
    least = results.criteria["min_effect"]
    if not layers:
        return [f"No attention or MLP layer moves m by {least} of the gap or more when it is patched."]
    heads = f"; of the heads {', '.join(results.critical_heads)}" if results.critical_heads else "; of no single head"
    return [f"It passes through {', '.join(layers)}{heads}: patched with later layers free, they move m."]


def _validation(kind: str, conditions: Sequence[ConditionRecord]) -> list[str]:
    """Say whether the critical units are needed and enough for the refusals of held-out prompts, beside random ones."""
    of_name = {each.name: each for each in conditions}
    ablated, control = of_name.get("critical ablated"), of_name.get("random ablated")
    if ablated is None:
        return []
    said = (
        f"With the {ablated.n_units} critical {_PARTS[kind]} replaced {rate(ablated.refusals)} held-out refusals stay"
    )
    if control is None:
        return [f"{said}; there are no others of their kind as a control."]
    said += f", with {control.n_units} random: {rate(control.refusals)}"
    if control.n_units < ablated.n_units:
        return [f"{said}; the control has fewer, so this does not tell whether it is these that count."]
    needed = "they are needed" if _below(ablated.refusals, control.refusals) else "no more is lost than by chance"
    sentences = f"{said}; {needed}."
    kept, random_kept = of_name.get("only critical kept"), of_name.get("only random kept")
    if kept is not None and random_kept is not None and kept.n_units == random_kept.n_units:
        enough = "they are enough" if _below(random_kept.refusals, kept.refusals) else "they are not enough"
        sentences += f" With them alone kept {rate(kept.refusals)} stay, with as many random alone kept "
        sentences += f"{rate(random_kept.refusals)}; {enough}."
    return [sentences]


def _below(low: RefusalsRecord, high: RefusalsRecord) -> bool:
    """Return whether one share is surely below another: their intervals do not meet."""
    ends = low.refusal.high, high.refusal.low
    return ends[0] is not None and ends[1] is not None and ends[0] < ends[1]


def _clamping(clamps: Sequence[ClampRecord]) -> list[str]:
    """Say what setting each direction or latent set to the value of complied and of refused prompts does."""
    found = []
    for clamp in clamps:
        doses = {dose.strength: dose for dose in clamp.doses}
        parts = []
        if 0.0 in doses:
            parts.append(f"as in complied prompts, {rate(doses[0.0].suppress)} refusals stay")
        if 1.0 in doses:
            parts.append(f"as in refused prompts, {rate(doses[1.0].force)} complied prompts are refused")
        if parts:
            found.append(f"With {_CLAMPED.get(clamp.what, clamp.what)} at {clamp.site} set {'; '.join(parts)}.")
    return found


def _structure(results: PatchingResults) -> list[str]:
    """Say whether categories use the same neurons in the layers that pass the decision on."""
    layers = [name.replace("mlp_", "neurons_") for name in results.critical_layers.get("mlp", ())]
    means = {each.site: each.mean for each in results.structure if each.mean.value is not None}
    found = [(site, means[site]) for site in sorted(layers, key=Site.parse) if site in means]
    said = [f"{_shared(mean)} at {site} ({measured(mean)})" for site, mean in found]
    return [f"Categories use {'; '.join(said)}: agreement over that of two halves of one category."] if said else []


def _shared(mean: Measure) -> str:
    if mean.low is None or mean.high is None:
        return "the same neurons or others (not to be told)"
    if mean.low >= SAME:
        return "the same neurons"
    if mean.high < OTHERS:
        return "other neurons"
    is_between = mean.low >= OTHERS and mean.high < SAME
    return "partly the same neurons" if is_between else "the same neurons or others (not to be told)"
