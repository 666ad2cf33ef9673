"""Print and write the refusal metrics of an inference run: python run_analysis.py --results-dir results.

Reads DIR/refusal_labels/*.json, prints one table per model and writes DIR/analysis_results.json. Exit status: 0 done,
2 the folder or a file in it is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from refusal.artefacts import ResultPaths
from refusal.errors import ArtefactError, InputError
from refusal.evaluation import AnalysisResults, analyse_all, as_text
from refusal.schemas import RefusalLabels


def analyse_folder(results_dir: Path) -> AnalysisResults:
    """Return the analysis of every model in a result folder, and write it there.

    Raises:
        InputError: The folder does not exist.
        ArtefactError: It holds no labels, or a file of labels is corrupt.
    """
    if not results_dir.is_dir():
        found = "is a file" if results_dir.exists() else "does not exist"
        raise InputError(
            f"--results-dir: {results_dir} {found}; allowed is the result_dir of an inference run; run first: "
            "python src/run_inference.py --config FILE"
        )
    paths = ResultPaths(results_dir)
    folder = paths.refusal_labels("any").parent
    files = sorted(folder.glob("[!.]*.json"))
    if not files:
        raise ArtefactError(
            f"{folder}: found no labels (*.json); needed is one file per model; run first: "
            f"python src/run_inference.py --config FILE (with result_dir: {results_dir})"
        )
    results = analyse_all(sorted((RefusalLabels.load(path) for path in files), key=lambda labels: labels.model))
    results.save(paths.analysis_results)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description="Refusal metrics of an inference run, with 95 % intervals.")
    parser.add_argument(
        "--results-dir", type=Path, default=Path("results"), help="folder of the run (default: results)"
    )
    results_dir: Path = parser.parse_args(arguments).results_dir
    try:
        results = analyse_folder(results_dir)
    except (InputError, ArtefactError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    sys.stdout.write(f"{as_text(results)}\nwritten: {ResultPaths(results_dir).analysis_results}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
