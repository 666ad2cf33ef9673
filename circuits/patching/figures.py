"""The pictures of activation patching: which there are, and drawing them from the artefacts. No model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure

from circuits.plots.patching import head_figure, layer_figure, position_figure, structure_figure
from circuits.plots.patching_answers import dose_figure, validation_figure
from circuits.plots.style import ImageFormat, save_figure
from refusal.artefacts import ResultPaths
from refusal.patching.records import PatchingResults

FIGURES: dict[str, Callable[[PatchingResults], Figure | None]] = {
    "layers": layer_figure,
    "heads": head_figure,
    "positions": position_figure,
    "clamping": dose_figure,
    "validation": validation_figure,
    "structure": structure_figure,
}
"""By the name of its file; None where there is nothing to draw."""


def figure_paths(paths: ResultPaths, model: str, image_format: ImageFormat) -> list[Path]:
    """Return where the pictures of a model lie, if they were drawn."""
    return [paths.patching_plot(model, name, image_format) for name in FIGURES]


def draw_patching(paths: ResultPaths, model: str, image_format: ImageFormat) -> list[Path]:
    """Write the pictures of a model and return their paths; what there is nothing of is removed.

    Raises:
        ArtefactError: The results are missing or damaged.
    """
    results = PatchingResults.load(paths.patching(model) / "patching.json")
    written = []
    for name, draw in FIGURES.items():
        for other in get_args(ImageFormat):
            paths.patching_plot(model, name, other).unlink(missing_ok=True)
        figure = draw(results)
        if figure is not None:
            written.append(save_figure(figure, paths.patching_plot(model, name, image_format), image_format))
    return written
