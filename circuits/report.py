"""The report stage: pictures, the summary, the report as one JSON file, and the page, all from artefacts.

1. `build_report` loads what earlier stages wrote for every model;
2. `write_reports` writes `circuit_analysis_report.json`, `visualizations/`, `circuit_analysis_summary.txt` and
   `report.html`.

No model is loaded and nothing is computed anew: the report can be remade anywhere from a result folder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from circuits.directions.report import direction_findings
from circuits.page import html_page
from circuits.page_data import Texts
from circuits.patching.page import PatchingPart
from circuits.patching.stage import compared_models, report_sections
from circuits.plots import CircuitVisualizer
from circuits.plots.style import ImageFormat
from circuits.summary import summary_text
from refusal import __version__
from refusal.artefacts import ResultPaths, write_text
from refusal.config import ReportConfig
from refusal.schemas import CircuitFile, Comparison, EvaluationResults, ModelOutputs, RefusalLabels, Report
from refusal.sites import Site


def build_report(
    paths: ResultPaths, models: Sequence[str], configuration: Mapping[str, Any], directed: Collection[str] = ()
) -> Report:
    """Return everything that was found, in one artefact.

    Args:
        paths: The result folder.
        models: Names as configured.
        configuration: The configuration as resolved, for the record.
        directed: Models whose refusal directions are shown too.

    Raises:
        ArtefactError: A comparison, an evaluation, a circuit or a direction is missing or damaged.
    """
    comparisons = {model: Comparison.load(paths.comparison(model)) for model in models}
    return Report.build(
        project_version=__version__,
        models=tuple(models),
        comparisons=comparisons,
        evaluations={model: EvaluationResults.load(paths.evaluation(model)) for model in models},
        circuits={
            model: {
                category: CircuitFile.load(paths.circuit(model, category))
                for category in dict.fromkeys((*comparison.categories, *comparison.support))
            }
            for model, comparison in comparisons.items()
        },
        directions={
            model: direction_findings(paths, model, comparison).model_dump(mode="json")
            for model, comparison in comparisons.items()
            if model in directed
        },
        configuration=dict(configuration),
    )


def write_reports(
    paths: ResultPaths,
    models: Sequence[str],
    settings: ReportConfig,
    configuration: Mapping[str, Any],
    image_format: ImageFormat | None = None,
    directed: Collection[str] = (),
    patched: Sequence[str] = (),
) -> list[Path]:
    """Write pictures, report, page and summary, and return their paths, the summary first.

    Args:
        paths: The result folder.
        models: Names as configured.
        settings: Whether there is to be a page, and the format of the pictures.
        configuration: The configuration as resolved, for the record.
        image_format: Format of the pictures in place of that in `settings`.
        directed: Models whose refusal directions are shown too.
        patched: Models whose activation patching is shown too.

    Raises:
        ArtefactError: An artefact of an earlier stage is missing or damaged.
    """
    report = build_report(paths, models, configuration, directed)
    report.save(paths.report_json)
    written = [paths.report_json]
    visualizer = CircuitVisualizer(paths, image_format or settings.image_format)
    for model in report.models:
        written += visualizer.model(report.comparisons[model], report.circuits[model].values())
    if settings.html:
        texts = {model: _texts(paths, model) for model in models}
        training = _training_figures(paths, report, written)
        patching = PatchingPart(report_sections(paths, patched), compared_models(paths, patched))
        write_text(paths.html, html_page(report, texts, training, patching))
        written.append(paths.html)
    write_summary(paths, report, written)
    return [paths.summary, *written]


def write_summary(paths: ResultPaths, report: Report, written: Sequence[Path]) -> None:
    """Write the page of text that a person reads first.

    Args:
        paths: The result folder.
        report: What was found.
        written: Files that the reader may want next; those that the summary knows are named.
    """
    write_text(paths.summary, summary_text(report, _look_next(paths, report, written)))


def _look_next(paths: ResultPaths, report: Report, written: Sequence[Path]) -> list[tuple[str, str]]:
    """Return (path relative to the result folder, what it holds)."""
    wanted = {paths.html: "explore circuits, pairs of categories and depth"}
    if report.models:
        first = report.models[0]
        suffix = next((path.suffix[1:] for path in written if path.parent.name == "visualizations"), "png")
        wanted[paths.similarity_heatmap(first, suffix)] = "who shares with whom"
        wanted[paths.depth_profile(first, suffix)] = "where in depth"
    wanted[paths.report_json] = "every number"
    return [(str(path.relative_to(paths.root)), content) for path, content in wanted.items() if path in written]


def _training_figures(paths: ResultPaths, report: Report, written: Sequence[Path]) -> dict[tuple[str, str], str]:
    """Return by model and site where the page finds the picture of the SAEs' training."""
    suffix = next((path.suffix[1:] for path in written if path.parent.name == "visualizations"), "png")
    figures = {}
    for model in report.models:
        for quality in report.comparisons[model].sae_quality:
            path = paths.training_plot(model, Site.parse(quality.site), suffix)
            if path in written:
                figures[model, quality.site] = quote(path.relative_to(paths.root).as_posix())
    return figures


def _texts(paths: ResultPaths, model: str) -> Texts:
    """Return prompts and responses of a model; a result folder may be passed on without them."""
    labels, outputs = paths.refusal_labels(model), paths.model_outputs(model)
    return Texts.of(
        RefusalLabels.load(labels) if labels.exists() else None,
        ModelOutputs.load(outputs) if outputs.exists() else None,
    )
