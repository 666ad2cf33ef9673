"""The whole study as jobs: `python jobs/submit.py --config F --scheduler slurm|pbs|local [--resources R] [--dry-run]`.

Hands in a chain of jobs, each of which begins when the one before it has gone well, and is taken out when it has not.
The same command again resumes: what is complete is not done twice. See docs/slurm.md, docs/pbs.md and docs/local.md.
"""

from __future__ import annotations

from pathlib import Path

from refusal.jobs.command import main

if __name__ == "__main__":
    raise SystemExit(main(Path(__file__).resolve().parents[1]))
