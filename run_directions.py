"""Refusal directions: `python run_directions.py --config configurations/directions.yaml`, or `--inspect FOLDER`."""

from __future__ import annotations

from circuits.job import directions_main

if __name__ == "__main__":
    raise SystemExit(directions_main())
