"""The patching stage as the main job runs it: `refusal.patching` measures, figures and the page follow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from urllib.parse import quote

from circuits.patching.figures import draw_patching, figure_paths
from circuits.patching.page import (
    MOST_CELLS,
    ComparedModels,
    PatchingSection,
    comparison_page,
    patching_page,
    patching_section,
)
from circuits.plots.patching_comparison import draw_comparison
from refusal.artefacts import ResultPaths, read_json, write_text
from refusal.config import Config
from refusal.patching.compare_models import COMPARISON, compare_models
from refusal.patching.records import PATCHING, PatchingComparison, PatchingResults
from refusal.patching.stage import RESULTS, circuits_digest, run_patching

PAGE = "report.html"


def patch_model(config: Config, model: str, paths: ResultPaths) -> None:
    """Run the stage for a model, draw its maps and write its page.

    Raises:
        InputError: The pairs are wrong or too few, or the model cannot be patched.
        ArtefactError: An artefact of an earlier stage is missing or damaged.
    """
    run_patching(config, model, paths)
    drawn = draw_patching(paths, model, config.report.image_format)
    results = PatchingResults.load(paths.patching(model) / RESULTS)
    write_text(paths.patching(model) / PAGE, patching_page(results, links(drawn, paths.patching(model), paths, model)))


def compare_models_of(config: Config, paths: ResultPaths) -> None:
    """Compare every pair of models that the configuration names, draw the maps and write a page each.

    Raises:
        InputError: Two models differ in shape, or have too few pairs in common.
    """
    for first, second in config.patching.compare:
        found = compare_models(config, (first, second), paths)
        folder = paths.patching_comparison(first, second)
        drawn = draw_comparison(found, folder, config.report.image_format)
        write_text(folder / PAGE, comparison_page(found, {path.stem: quote(path.name) for path in drawn}))


def links(pictures: list[Path], folder: Path, paths: ResultPaths, model: str) -> dict[str, str]:
    """Return pictures by name, as a page in `folder` names them."""
    before = paths.patching_plot(model, "x").name.removesuffix("x.png")
    return {path.stem.removeprefix(before): quote(Path(os.path.relpath(path, folder)).as_posix()) for path in pictures}


def patching_files(config: Config, paths: ResultPaths, model: str) -> list[Path]:
    """Return the files of a model's patching, figures included."""
    files = sorted(path for path in paths.patching(model).rglob("[!.]*") if path.is_file())
    return [*files, *(path for path in figure_paths(paths, model, config.report.image_format) if path.exists())]


def lacks_circuits(config: Config, paths: ResultPaths, model: str) -> str | None:
    """Return that the circuits are others than those whose latents were mapped; None if they are the same."""
    if not config.patching.latents:
        return None
    held = read_json(paths.patching(model) / RESULTS, PATCHING).get("circuits")
    return None if held == circuits_digest(paths, model) else "the circuits whose latents are mapped have changed"


def compared_models(paths: ResultPaths, models: Sequence[str]) -> list[ComparedModels]:
    """Return which of the models were compared with each other.

    Raises:
        ArtefactError: A comparison is damaged.
    """
    found = []
    for first, second in permutations(models, 2):
        folder = paths.patching_comparison(first, second)
        if (folder / COMPARISON).exists():
            n_pairs = PatchingComparison.load(folder / COMPARISON).n_pairs
            page = quote((folder / PAGE).relative_to(paths.root).as_posix())
            found.append(ComparedModels(first, second, n_pairs, page))
    return found


def report_sections(paths: ResultPaths, models: Sequence[str]) -> list[PatchingSection]:
    """Return what the report shows of patching, for the models that have it.

    Raises:
        ArtefactError: Results are damaged.
    """
    sections = []
    for model in models:
        results = PatchingResults.load(paths.patching(model) / RESULTS)
        drawn = [
            path for suffix in ("png", "svg", "pdf") for path in figure_paths(paths, model, suffix) if path.exists()
        ]  # type: ignore[arg-type]
        sections.append(patching_section(results, links(drawn, paths.root, paths, model), MOST_CELLS))
    return sections
