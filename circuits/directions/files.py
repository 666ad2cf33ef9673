"""Where the directions stage of the main job writes, besides what `refusal.directions` does."""

from __future__ import annotations

from pathlib import Path

from refusal.artefacts import ResultPaths
from refusal.directions.found import stage_files

STATEMENT, SUMMARY = "statement.json", "summary.txt"


def direction_files(paths: ResultPaths, model: str) -> list[Path]:
    """Return the files of a model's directions, figures and text included."""
    return [*stage_files(paths, model), *figure_files(paths, model)]


def figure_files(paths: ResultPaths, model: str) -> list[Path]:
    """Return the figures of a model's directions that are there, in any format."""
    pattern = paths.direction_plot(model, "x", "y")
    prefix = pattern.name.removesuffix("x.y")
    return sorted(path for path in pattern.parent.glob("*") if path.name.startswith(prefix))
