"""Speed of activation patching: every layer x head of 50 pairs, both ways, on a shipped planted model.

    python benchmarks/patching.py [--model planted/monolithic] [--pairs 50] [--threads 1] [--tiny]

Printed are wall seconds, patches a second, and how well the estimates agree with what was measured. The aim: all layers
x heads for 50 pairs on a planted model in under 60 seconds on two cores. One by one: the same patches with a batch of
one pair and one patch a forward pass, timed on a few pairs.

Seen with one thread of a machine shared with other work (4 layers, 4 heads, about 11 tokens, 50 pairs; denoising and
noising). Two threads took 3 to 20 times as long: they wait for each other.

    all layers x heads, both ways                 seconds  patches / s  Spearman with measured
    measured, readout position                       0.34        4,677
    gradient, readout position                       0.24        6,710  0.94 0.89
    integrated, 5 steps, readout position            2.13          751  0.99 0.99
    measured, every position                         0.77        2,082
    gradient, every position                         0.19        8,493  0.93 0.91
    integrated, 5 steps, every position              2.05          780  1.00 0.99
    measured one by one, every position, 4 pairs     0.75          170
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from refusal.metric import RefusalMetric
from refusal.models import ChatModel
from refusal.patching import runs as runs_module
from refusal.patching.attribution import agreement, estimate_units
from refusal.patching.exact import patch_units
from refusal.patching.pairs import embedded_pairs, split_pairs
from refusal.patching.runs import PairRuns
from refusal.patching.tokens import EVERYWHERE, READOUT, Place, tokenise
from refusal.patching.units import Mode, Patch, PatchedMetric, head_units
from refusal.planted.language import ENGLISH
from refusal.planted.pool import first_tokens

Result = TypeVar("Result")


def load_runs(name: str, n_pairs: int, batch_size: int) -> PairRuns:
    """Return a planted model on embedded pairs, run once."""
    model = ChatModel.load(name, device="cpu")
    openers = first_tokens(ENGLISH, model.tokenizer)
    metric = RefusalMetric(tuple(openers[1].tolist()), tuple(openers[0].tolist()))
    maps, _ = split_pairs(embedded_pairs(), n_pairs, 0)
    tokens, frame = tokenise(model, maps.pairs, None, ())
    return PairRuns(model, metric, tokens, frame, batch_size=batch_size)


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """Return what a call gives and how long it took, in seconds."""
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def both_ways(runs: PairRuns, place: Place, steps: int | None) -> list[PatchedMetric]:
    """Return the maps of all heads at a place, denoising and noising; measured (None) or estimated."""
    units = head_units(runs.model, [place])
    if steps is None:
        return [patch_units(runs, units, Patch(mode)) for mode in Mode]
    return [estimate_units(runs, units, Patch(mode), steps) for mode in Mode]


def row(what: str, n_patches: int, seconds: float, found: str = "") -> None:
    """Print a row of the table."""
    print(f"{what:<44} {seconds:>8.2f} {n_patches / seconds:>12,.0f}  {found}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="planted/monolithic")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="few pairs: a smoke test")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n_pairs = 8 if arguments.tiny else arguments.pairs
    runs = load_runs(arguments.model, n_pairs, 32)
    n = 2 * len(head_units(runs.model, [READOUT])) * len(runs)
    print(f"{'all layers x heads, both ways':<44} {'seconds':>8} {'patches / s':>12}  Spearman with measured")
    for place, said in ((READOUT, "readout position"), (EVERYWHERE, "every position")):
        exact, seconds = timed(lambda place=place: both_ways(runs, place, None))  # type: ignore[misc]
        row(f"measured, {said}", n, seconds)
        for steps in (0, 5):
            found, seconds = timed(lambda place=place, steps=steps: both_ways(runs, place, steps))  # type: ignore[misc]
            rho = [agreement(one, other).spearman for one, other in zip(exact, found, strict=True)]
            said_steps = f"integrated, {steps} steps" if steps else "gradient"
            row(f"{said_steps}, {said}", n, seconds, " ".join(f"{value:.2f}" for value in rho if value is not None))
    few = min(4, n_pairs)
    one_by_one = load_runs(arguments.model, few, 1)
    runs_module.TOKEN_BUDGET = 1
    _, seconds = timed(lambda: both_ways(one_by_one, EVERYWHERE, None))
    row(f"measured one by one, every position, {few} pairs", n * few // len(runs), seconds)


if __name__ == "__main__":
    main()
