"""Print and write the refusal metrics of an inference run: python run_analysis.py --results-dir results.

Reads DIR/refusal_labels/*.json and DIR/model_outputs/*.json, prints one table per model and writes
DIR/analysis_results.json, DIR/detector_disagreements.csv and two figures in DIR/visualizations. With --labels FILE the
detectors are compared with what people said (formats: src/refusal/evaluation/label_files.py). Exit status: 0 done, 2
the folder or a file is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from refusal.artefacts import ResultPaths
from refusal.cli import run_command
from refusal.errors import ArtefactError, InputError
from refusal.evaluation import plots as behaviour_plots
from refusal.evaluation.agreement import Judged, compare, judge_all, write_disagreements
from refusal.evaluation.label_files import HumanLabel, read_labels
from refusal.evaluation.rates import AnalysisResults, analyse_all
from refusal.evaluation.text import as_text
from refusal.schemas import ModelOutputs, RefusalLabels


def analyse_folder(results_dir: Path, labels_file: Path | None = None) -> AnalysisResults:
    """Return the analysis of every model in a result folder, and write it and its figures there.

    Raises:
        InputError: The folder does not exist, or the file of labels is wrong or has labels of no response in it.
        ArtefactError: It holds no labels, or a file of labels is corrupt.
    """
    people = [] if labels_file is None else read_labels(labels_file)
    paths = ResultPaths(results_dir)
    labels = _read_folder(results_dir, paths)
    judged = _judge(labels, paths, people)
    if labels_file is not None and not any(said is not None for one in judged for said in one.people):
        raise InputError(
            f"--labels: none of the {len(people)} labels in {labels_file} is of a response in {results_dir}; ids and "
            "responses must be those of model_outputs/*.json, and model, where given, that of the run"
        )
    results = analyse_all(labels, {one.labels.model: compare(one) for one in judged})
    if judged:
        write_disagreements(paths.disagreements, judged)
    behaviour_plots.save(behaviour_plots.rates_table(results), paths.rates_figure)
    behaviour_plots.save(behaviour_plots.trade_off(results), paths.trade_off_figure)
    results.save(paths.analysis_results)
    return results


def _read_folder(results_dir: Path, paths: ResultPaths) -> list[RefusalLabels]:
    if not results_dir.is_dir():
        found = "is a file" if results_dir.exists() else "does not exist"
        raise InputError(
            f"--results-dir: {results_dir} {found}; allowed is the result_dir of an inference run; run first: "
            "python src/run_inference.py --config FILE"
        )
    folder = paths.refusal_labels("any").parent
    files = sorted(folder.glob("[!.]*.json"))
    if not files:
        raise ArtefactError(
            f"{folder}: found no labels (*.json); needed is one file per model; run first: "
            f"python src/run_inference.py --config FILE (with result_dir: {results_dir})"
        )
    return sorted((RefusalLabels.load(path) for path in files), key=lambda labels: labels.model)


def _judge(labels: Sequence[RefusalLabels], paths: ResultPaths, people: Sequence[HumanLabel]) -> list[Judged]:
    """Return what detectors say of the models whose responses are in the folder."""
    found = [(one, paths.model_outputs(one.model)) for one in labels]
    return [judge_all(one, ModelOutputs.load(path), people) for one, path in found if path.exists()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description="Refusal metrics of an inference run, with 95 % intervals.")
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), help="folder of the run (default: results)"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="labels by people: CSV, JSON or JSONL with id or response, and label",
    )
    given = parser.parse_args(arguments)
    return run_command(partial(_analyse, given.results_dir, given.labels), verbose=False)


def _analyse(results_dir: Path, labels: Path | None) -> str:
    """Return what is printed."""
    results = analyse_folder(results_dir, labels)
    return f"{as_text(results)}\nwritten: {ResultPaths(results_dir).analysis_results}"


if __name__ == "__main__":
    sys.exit(main())
