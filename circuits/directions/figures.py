"""The figures of the directions stage, by the name that their files have: what is there decides which are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from circuits.directions.verdict import StatementFile
from circuits.plots.direction_depth import components_plot, direction_depth, specificity_plot
from circuits.plots.direction_layers import layers_figure
from circuits.plots.direction_trials import trials_figure
from circuits.plots.directions import cosine_heatmap, transfer_heatmap
from circuits.plots.doses import dose_figure
from circuits.plots.projections import projection_histograms, projection_lines, projections_by_category
from circuits.plots.selection import selection_figure
from refusal.config import AnalysisConfig
from refusal.directions.found import Found
from refusal.directions.projections import Projection


@dataclass(frozen=True)
class Drawn:
    """What figures are drawn from."""

    found: Found
    statement: StatementFile
    projection: Projection | None
    """None where fewer than two categories can be compared."""
    thresholds: AnalysisConfig

    @property
    def model(self) -> str:
        """The model's name."""
        return self.found.directions.model

    @property
    def layer(self) -> int:
        """The layer of figures of one layer: the last before the decision, or where the direction was selected."""
        chosen = self.found.directions.chosen
        assert chosen is not None, "without a direction nothing is drawn"
        return chosen.layer if self.statement.statement.layer is None else self.statement.statement.layer


def figures(drawn: Drawn) -> dict[str, Callable[[], Figure]]:
    """Return what draws each figure, by name; empty where no direction could be formed."""
    found = drawn.found
    if found.directions.reason is not None:
        return {}
    made: dict[str, Callable[[], Figure]] = {
        "selection": lambda: selection_figure(found),
        "doses": lambda: dose_figure(found),
        "trials": lambda: trials_figure(found),
        "layers": lambda: layers_figure(found),
    }
    if found.contrasts is not None and found.contrasts.contrasts:
        contrasts = found.contrasts.contrasts
        made["contrasts"] = lambda: specificity_plot(drawn.model, contrasts)
    return made | _of_categories(drawn)


def _of_categories(drawn: Drawn) -> dict[str, Callable[[], Figure]]:
    categories, projection, model, layer = drawn.found.categories, drawn.projection, drawn.model, drawn.layer
    if categories is None or categories.reason is not None or projection is None:
        return {}
    said, geometry, transfer = drawn.statement, categories.geometry, categories.transfer
    groups = said.statement.groups
    return {
        "cosines": lambda: cosine_heatmap(model, geometry[layer], groups),
        "transfer": lambda: transfer_heatmap(model, transfer[layer], groups),
        "depth": lambda: direction_depth(model, geometry, transfer, said.commit_site, drawn.thresholds),
        "components": lambda: components_plot(model, geometry[layer]),
        "histograms": lambda: projection_histograms(model, projection),
        "projections": lambda: projection_lines(model, projection),
        "categories": lambda: projections_by_category(model, projection, layer),
    }
