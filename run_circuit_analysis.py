"""The main job: `python run_circuit_analysis.py --config configurations/quickstart.yaml`."""

from __future__ import annotations

from circuits.job import main

if __name__ == "__main__":
    raise SystemExit(main())
