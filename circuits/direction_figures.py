"""The figures of the directions stage, by the name that their files have."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from circuits.plot_direction_layers import layers_figure
from circuits.plot_direction_trials import trials_figure
from circuits.plot_doses import dose_figure
from circuits.plot_selection import selection_figure
from refusal.directions.found import Found

FIGURES: dict[str, Callable[[Found], Figure]] = {
    "selection": selection_figure,
    "doses": dose_figure,
    "trials": trials_figure,
    "layers": layers_figure,
}
