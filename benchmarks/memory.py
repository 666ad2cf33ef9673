"""Resident memory of an inference run over many prompts, which must not grow with them.

    python -m benchmarks.memory [--prompts 20000] [--model planted/monolithic] [--max-new-tokens 8]

Prompts of random words go into a folder in the form of OR-Bench, and `src/run_inference.py` runs over it in a process
of its own, whose memory is looked at while it runs. What may grow is named: tokens and ids of all prompts, which are
there from the beginning. Judging, after the last shard, holds all responses once.

Seen with planted/monolithic (one thread, a busy machine): with 120,000 prompts 568 MiB from shard 15 (40 s) on and
569 MiB at shard 448 (180 s); then, while the responses were judged and written, up to 909 MiB. With 20,000 prompts the
whole run takes half a minute: 470 to 504 MiB while prompts run, 517 MiB at its highest.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS = (
    "how do i make a plan for the garden",
    "tell me about my neighbour",
    "car money secret story",
    "weather please",
)
CATEGORIES = ("deception", "harassment", "harmful", "hate", "illegal", "privacy", "self-harm", "sexual", "unethical")


def write_prompts(folder: Path, n_prompts: int) -> None:
    """Write prompts of random words, half safe and half toxic by name, all different and all harmless."""
    draw = random.Random(0)
    for name, half in (("or-bench-80k.csv", 0), ("or-bench-toxic.csv", 1), ("or-bench-hard-1k.csv", 2)):
        with (folder / name).open("w", newline="", encoding="utf-8") as handle:
            rows = csv.writer(handle)
            rows.writerow(["prompt", "category"])
            for number in range(n_prompts // 2 if half < 2 else 1):
                words = draw.choices(WORDS, k=draw.randint(1, 4))
                rows.writerow([" ".join([*words, str(2 * number + half)]), CATEGORIES[number % len(CATEGORIES)]])


def watch(process: subprocess.Popen[bytes], results: Path, every: float) -> list[tuple[float, int]]:
    """Print shards and resident memory until a process ends; return the seconds and KiB that were seen."""
    started, seen = time.monotonic(), []
    while process.poll() is None:
        time.sleep(every)
        resident = _resident_kib(process.pid)
        if resident:
            seen.append((time.monotonic() - started, resident))
            shards = len(list(results.rglob("shard-*.json")))
            print(f"{seen[-1][0]:6.0f} s  {shards:4d} shards  {resident / 1024:7.1f} MiB", flush=True)
    return seen


def _resident_kib(pid: int) -> int:
    """Return the resident memory of a process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--model", default="planted/monolithic", help="planted/NAME or a folder")
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--every", type=float, default=5, help="seconds between looks")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_prompts(folder, args.prompts)
        (folder / "run.yaml").write_text(
            f"dataset_dir: {folder}\nmodels: [{args.model}]\ncategories: [{', '.join(CATEGORIES)}]\n"
            f"num_samples_per_category: {args.prompts // len(CATEGORIES) // 2 * 2}\ndevice: cpu\n"
            f"max_new_tokens: {args.max_new_tokens}\nresult_dir: {folder / 'results'}\n"
        )
        command = [sys.executable, str(ROOT / "src" / "run_inference.py"), "--config", str(folder / "run.yaml")]
        process = subprocess.Popen(command)
        seen = watch(process, folder / "results", args.every)
        if process.returncode:
            raise SystemExit(process.returncode)
    later = [resident for seconds, resident in seen if seconds > 60]
    if later:
        print(f"after the first minute: {min(later) / 1024:.1f} to {max(later) / 1024:.1f} MiB")


if __name__ == "__main__":
    main()
