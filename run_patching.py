"""Where refusal is decided, by activation patching: `python run_patching.py --config configurations/patching.yaml`."""

from __future__ import annotations

from circuits.job import patching_main

if __name__ == "__main__":
    raise SystemExit(patching_main())
