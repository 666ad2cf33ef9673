"""`python -m benchmarks.calibration make|run|report`: is the verdict right on models whose mechanism is known?

`make` trains the models (1.5 to 6 minutes each), `run` runs the main job on each, `report` writes `RESULTS.md` and
`results.csv` beside this file. All three go on where they stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.calibration.report import report
from benchmarks.calibration.runs import collect, run_all, save
from benchmarks.calibration.zoo import make, zoo

HERE = Path(__file__).parent


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("command", choices=["make", "run", "report"])
    parser.add_argument("--out", type=Path, default=Path("results/calibration"), help="where models and runs lie")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, one thread each")
    parser.add_argument("--only", type=int, nargs="*", help="indices of models; default: all")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    specs = zoo() if arguments.only is None else [zoo()[index] for index in arguments.only]
    if arguments.command == "make":
        make(out, arguments.jobs, specs)
    elif arguments.command == "run":
        run_all(out, arguments.jobs, specs)
    else:
        rows = collect(out, specs)
        save(rows, HERE / "results.csv")
        (HERE / "RESULTS.md").write_text(report(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
