"""`python -m benchmarks.calibration make|run|report`: is the verdict right on models whose mechanism is known?"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.calibration.zoo import make, zoo


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("command", choices=["make", "run", "report", "list"])
    parser.add_argument("--out", type=Path, default=Path("results/calibration"), help="where models and runs lie")
    parser.add_argument("--jobs", type=int, default=2, help="models at a time, one thread each")
    parser.add_argument("--only", type=int, nargs="*", help="indices of models; default: all")
    arguments = parser.parse_args()
    specs = zoo() if arguments.only is None else [zoo()[index] for index in arguments.only]
    if arguments.command == "make":
        make(arguments.out, arguments.jobs, specs)
    else:
        for spec in specs:
            print(spec)


if __name__ == "__main__":
    main()
