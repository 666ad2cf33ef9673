"""The inference stage alone: `python src/run_inference.py --config configurations/orbench_run.yaml`."""

from __future__ import annotations

from circuits.job import inference_main

if __name__ == "__main__":
    raise SystemExit(inference_main())
