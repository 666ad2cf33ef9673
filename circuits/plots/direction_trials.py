"""What a model does under each intervention along its refusal direction, and what the intervention costs on text."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from circuits.plots.style import (
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
from refusal.directions.found import Found
from refusal.directions.schemas import Behaviours, Condition

_SIDES = {"refused": "refused without intervention", "complied": "complied with without intervention"}
_NEITHER = "#c9ced4"
_PANEL, _ROW, _LEFT, _GAP, _BOTTOM = 3.2, 0.44, 1.9, 0.35, 1.4


def trials_figure(found: Found) -> Figure:
    """Return the figure: shares refused, complied and neither per intervention, by side, and cross-entropy."""
    conditions = list(found.conditions.values())
    height = _ROW * len(conditions)
    figure = new_figure(_LEFT + 3 * _PANEL + 2 * _GAP + 0.4, _BOTTOM + height + 1.3)
    for column, (side, title) in enumerate(_SIDES.items()):
        axes = add_axes(figure, _LEFT + column * (_PANEL + _GAP), _BOTTOM, _PANEL, height)
        _draw_shares(axes, [condition.groups[side] for condition in conditions])
        axes.set_title(f"{title} (n {conditions[0].groups[side].refused.n})", fontsize=9, color=INK, loc="left")
        _rows(axes, conditions if column == 0 else [], len(conditions))
    axes = add_axes(figure, _LEFT + 2 * (_PANEL + _GAP), _BOTTOM, _PANEL, height)
    _draw_losses(axes, conditions)
    _rows(axes, [], len(conditions))
    where = f"interventions act at: {found.directions.chosen.steer_at}" if found.directions.chosen else ""
    add_head(figure, f"{name(found.directions.model, 48)}: answers to test prompts", where)
    colours = {"refused": POSITIVE, "complied": NEGATIVE, "neither": _NEITHER}
    add_legend(figure, [Patch(color=c, label=label) for label, c in colours.items()], 0.25, 0.5, ncols=3)
    note = (
        "Whiskers: 95 % Wilson intervals of the share refused; of cross-entropy: 95 % bootstrap intervals over texts. "
        "Neither: partly refused, or nothing could be told. Published ablation: to zero, at all positions."
    )
    add_notes(figure, wrapped(note, figure.get_size_inches()[0] - 0.6, 8.5))
    return figure


def _rows(axes: Axes, conditions: list[Condition], n: int) -> None:
    quiet_axes(axes)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_yticks([])
    if conditions:
        tick_names(axes, "y", range(n), [condition.name for condition in conditions], fontsize=9)


def _draw_shares(axes: Axes, found: list[Behaviours]) -> None:
    places = np.arange(len(found))
    left = np.zeros(len(found))
    for kind, colour in (("refused", POSITIVE), ("other", _NEITHER), ("complied", NEGATIVE)):
        shares = np.array([getattr(each, kind).value or 0.0 for each in found])
        axes.barh(places, shares, left=left, height=0.66, color=colour)
        left += shares
    ends = [(each.refused.low or 0.0, each.refused.high or 0.0) for each in found]
    axes.hlines(places, [low for low, _ in ends], [high for _, high in ends], color=INK, linewidth=1.3)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of answers", fontsize=9, color=INK)


def _draw_losses(axes: Axes, conditions: list[Condition]) -> None:
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for place, condition in enumerate(conditions):
        loss = condition.cross_entropy
        if loss.value is None:
            continue
        axes.plot([loss.value], [place], "o", color=INK, markersize=4.5)
        if loss.low is not None and loss.high is not None:
            axes.hlines([place], [loss.low], [loss.high], color=INK, linewidth=1.3)
    n = conditions[0].cross_entropy.n
    axes.set_title(f"loss on own complied answers (n {n})", fontsize=9, color=INK, loc="left")
    axes.set_xlabel("cross-entropy, nats per token", fontsize=9, color=INK)
