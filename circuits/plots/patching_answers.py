"""Figures of answers under intervention, from `PatchingResults`: dose-response of clamping, and the validation."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from circuits.plots.style import (
    FAINT,
    GRID,
    INK,
    NEGATIVE,
    POSITIVE,
    add_axes,
    add_head,
    add_legend,
    add_notes,
    name,
    new_figure,
    quiet_axes,
    tick_names,
    wrapped,
)
from refusal.patching.records import ClampRecord, ConditionRecord, DoseRecord, PatchingResults, RefusalsRecord

_STYLES = {"direction": "-", "latents": "-", "random directions": ":"}
SUPPRESS, FORCE = POSITIVE, NEGATIVE
"""Colours of prompts that are refused as they are, and complied with as they are."""


def dose_figure(results: PatchingResults) -> Figure | None:
    """Return the dose-response curves, a panel for the direction and one for latents; None: nothing was clamped."""
    shown = [each for each in results.clamping if each.what != "random directions"]
    if not shown:
        return None
    panel, height, left, gap = 3.6 if len(shown) > 1 else 6.2, 2.7, 0.85, 0.45
    width = max(7.5, left + len(shown) * panel + (len(shown) - 1) * gap + 0.3)
    figure = new_figure(width, height + 2.85)
    controls = [each for each in results.clamping if each.what == "random directions"]
    for place, each in enumerate(shown):
        axes = add_axes(figure, left + place * (panel + gap), 1.7, panel, height)
        _curve(axes, each)
        for control in controls if each.what == "direction" else []:
            _curve(axes, control)
        axes.set_title(f"{each.what} at {each.site}", fontsize=9.5, color=INK)
        axes.set_xlabel("strength (0: as complied prompts, 1: as refused)", fontsize=8.5, color=INK)
        if place == 0:
            axes.set_ylabel("share of prompts refused", fontsize=9, color=INK)
    handles = [
        Line2D([], [], color=SUPPRESS, marker="o", label="prompts refused as they are"),
        Line2D([], [], color=FORCE, marker="s", label="prompts complied with as they are"),
    ]
    if controls:
        handles.append(Line2D([], [], color=FAINT, linestyle=":", marker=".", label=controls[0].source))
    add_legend(figure, handles, left, 0.8, ncols=3)
    n = shown[0].doses[0].suppress.refusal.n
    add_head(
        figure,
        f"{name(results.model, 40)}: forcing and suppressing refusal",
        f"generated answers; n = {n} prompts each",
    )
    text = "Bars: Wilson 95 % intervals. Lines at both margins: nothing clamped. Crosses: shares of answers of "
    add_notes(figure, wrapped(text + "which it cannot be told what they do, a sign of damage.", width - 0.6, 8.5))
    return figure


def _curve(axes: Axes, each: ClampRecord) -> None:
    is_control = each.what == "random directions"
    quiet_axes(axes)
    axes.set_ylim(-0.05, 1.05)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    doses = [dose for dose in each.doses if dose.strength is not None]
    untouched = next((dose for dose in each.doses if dose.strength is None), None)
    for side, colour, marker in (("suppress", SUPPRESS, "o"), ("force", FORCE, "s")):
        found = [_side(dose, side) for dose in doses]
        x = [float(dose.strength or 0.0) for dose in doses]
        y = [_value(each.refusal.value) for each in found]
        below = [value - _value(each.refusal.low, value) for value, each in zip(y, found, strict=True)]
        above = [_value(each.refusal.high, value) - value for value, each in zip(y, found, strict=True)]
        style: dict[str, Any] = {"marker": "." if is_control else marker, "markersize": 4, "capsize": 2}
        style["linestyle"] = _STYLES[each.what]
        alpha = 0.75 if is_control else 1.0
        errors = None if is_control else [[max(0.0, v) for v in ends] for ends in (below, above)]
        # the wider line stays visible where both have the same values
        wide = 3.4 if side == "suppress" and not is_control else 1.4
        axes.errorbar(x, y, yerr=errors, color=colour, linewidth=wide, elinewidth=1.2, alpha=alpha, **style)
        unclear = [each.n_unclear / max(1, each.refusal.n) for each in found]
        if not is_control and any(unclear):
            axes.plot(x, unclear, linestyle="none", marker="x", color=colour, markersize=5)
        if untouched is not None and not is_control:
            value = _value(_side(untouched, side).refusal.value)
            axes.axhline(value, xmax=0.03, color=colour, linewidth=3)
            axes.axhline(value, xmin=0.97, color=colour, linewidth=3)


def _side(dose: DoseRecord, side: str) -> RefusalsRecord:
    return dose.suppress if side == "suppress" else dose.force


def _value(value: float | None, default: float = float("nan")) -> float:
    return default if value is None else value


def validation_figure(results: PatchingResults) -> Figure | None:
    """Return the refusals with critical units ablated or kept, and with random ones; None where nothing was ablated."""
    kinds = [kind for kind in ("heads", "mlp") if any(each.kind == kind for each in results.validation)]
    rows = [[each for each in results.validation if each.kind == kind] for kind in kinds]
    if not rows:
        return None
    left, panel, step = 2.3, 4.6, 0.34
    heights = [step * len(found) for found in rows]
    height = sum(heights) + 0.75 * len(rows) + 1.6
    figure = new_figure(left + panel + 0.9, height)
    top = height - 1.2
    for kind, found, each_height in zip(kinds, rows, heights, strict=True):
        axes = add_axes(figure, left, top - each_height, panel, each_height)
        _conditions(axes, found)
        axes.set_title(
            f"{kind}: {max(c.n_units for c in found if 'critical ablated' in c.name or c.n_units == 0)} critical",
            fontsize=9.5,
            color=INK,
        )
        top -= each_height + 0.75
    add_head(figure, f"{name(results.model, 40)}: are the critical units what carries refusal?", _answers_line(results))
    text = (
        "Shares of held-out prompts refused, Wilson 95 % intervals; random: other units of the same layers, or "
        "where these have too few, of any; several sets."
    )
    add_notes(figure, wrapped(text, left + panel + 0.3, 8.5))
    return figure


def _answers_line(results: PatchingResults) -> str:
    n = results.validation[0].refusals.refusal.n
    return f"generated answers to prompts that are refused as they are; n = {n}"


def _conditions(axes: Axes, found: list[ConditionRecord]) -> None:
    quiet_axes(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(found) - 0.5, -0.5))
    for row, each in enumerate(found):
        rate = each.refusals.refusal
        value = _value(rate.value)
        ends = [[max(0.0, value - _value(rate.low, value))], [max(0.0, _value(rate.high, value) - value)]]
        colour = FAINT if "random" in each.name else POSITIVE
        axes.errorbar([value], [row], xerr=ends, marker="o", color=colour, capsize=2, linewidth=1.4)
        text = f"{rate.k} of {rate.n}" + (f", {each.refusals.n_unclear} unclear" if each.refusals.n_unclear else "")
        axes.annotate(
            text,
            (1.0, row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=FAINT,
            annotation_clip=False,
        )
    names = [f"{each.name}" + (f" ({each.n_units})" if each.n_units else "") for each in found]
    tick_names(axes, "y", range(len(found)), names, fontsize=8.5)
