"""The directions stage as the main job runs it: `refusal.directions` measures; statement, figures and text follow.

What the directions say of the question needs to know where the decision is made. That is measured here as the compare
stage does (`circuits.direct`), so that directions can be studied without circuits.
"""

from __future__ import annotations

from circuits.direct import direct_effects
from circuits.directions.figures import Drawn, figures
from circuits.directions.files import STATEMENT, SUMMARY, figure_files
from circuits.directions.summary import direction_summary
from circuits.directions.verdict import StatementFile, state
from circuits.evidence import Evidence
from circuits.plots.style import save_figure
from circuits.verdict import commit_site
from refusal.artefacts import ResultPaths, write_text
from refusal.config import Config
from refusal.directions.found import Found
from refusal.directions.projections import read_projection
from refusal.directions.stage import find_directions


def run_directions(config: Config, model: str, paths: ResultPaths) -> None:
    """Find a model's directions, say what they tell, draw them and sum them up.

    Raises:
        ArtefactError: The inference stage has not been run, or its files are damaged.
        InputError: The configuration does not fit the prompts or the model.
    """
    find_directions(config, model, paths)
    found, folder = Found.load(paths, model), paths.directions(model)
    for stale in figure_files(paths, model):
        stale.unlink()
    statement = _statement(config, model, paths, found)
    statement.save(folder / STATEMENT)
    drawn = Drawn(found, statement, read_projection(folder), config.analysis)
    image_format = config.report.image_format
    for name, draw in figures(drawn).items():
        save_figure(draw(), paths.direction_plot(model, name, image_format), image_format)
    write_text(folder / SUMMARY, direction_summary(found, statement))


def _statement(config: Config, model: str, paths: ResultPaths, found: Found) -> StatementFile:
    """Return what the directions say; of categories that could not be compared, why."""
    categories = found.categories
    if categories is None or categories.reason is not None:
        reason = found.directions.reason if categories is None else categories.reason
        return StatementFile.none(model, reason or "categories were not compared")
    evidence = Evidence(config, model, paths)
    commit = None if evidence.missing is not None else commit_site(direct_effects(evidence).mean_shares())
    name = None if commit is None else str(commit)
    said = state(categories.geometry, categories.transfer, name, config.analysis)
    return StatementFile.build(model=model, commit_site=name, statement=said)
