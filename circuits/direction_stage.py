"""The directions stage as the main job runs it: `refusal.directions` measures, figures and a page of text follow."""

from __future__ import annotations

from pathlib import Path

from circuits.direction_figures import FIGURES
from circuits.direction_summary import direction_summary
from circuits.plot_style import save_figure
from circuits.report import write_text
from refusal.artefacts import ResultPaths
from refusal.config import Config
from refusal.directions.found import Found
from refusal.directions.stage import find_directions, stage_files

SUMMARY = "summary.txt"


def run_directions(config: Config, model: str, paths: ResultPaths) -> None:
    """Find a model's directions, draw them and sum them up.

    Raises:
        ArtefactError: The inference stage has not been run, or its files are damaged.
        InputError: The configuration does not fit the prompts or the model.
    """
    find_directions(config, model, paths)
    found = Found.load(paths, model)
    image_format = config.report.image_format
    for path in _figures(config, paths, model):
        path.unlink(missing_ok=True)
    if found.directions.reason is None:
        for name, draw in FIGURES.items():
            save_figure(draw(found), paths.direction_plot(model, name, image_format), image_format)
    write_text(paths.directions(model) / SUMMARY, direction_summary(found))


def direction_files(config: Config, paths: ResultPaths, model: str) -> list[Path]:
    """Return the files of a model's directions, figures and text included."""
    figures = (path for path in _figures(config, paths, model) if path.exists())
    return [*stage_files(paths, model), *figures]


def _figures(config: Config, paths: ResultPaths, model: str) -> list[Path]:
    return [paths.direction_plot(model, name, config.report.image_format) for name in FIGURES]
