"""Speed, memory and quality of TopK training: ours, the same loss through dense autograd, other libraries, the floor.

    python -m benchmarks.sae_training [--d-model 768 --d-sae 6144 --k 32 --steps 60] [--threads 2] [--repeats 2]

All train on the same rows in batches of the same size with the same k, so held-out L0 is equal; each in a process of
its own, so that memory can be told apart. Rows are made of known sparse features, so recovery can be counted.
The floor is the encoder's matrix product alone, forward, once per batch: nothing that looks at all latents in float32
can be faster. Seconds are CPU seconds with one thread and wall seconds with more, the least of the repeats; on a shared
machine only ratios mean something. Memory is the peak above what is there before training, the rows among it; ours
normalises the rows itself, with that time and memory counted, the others get scaled rows for nothing. Of the learning
rates tried for a peer the one with the best held-out FVU counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.sae_peers import PEERS, Scaled, installed
from refusal.sae import gradients, objectives
from refusal.sae.auto import auto_lr
from refusal.sae.metrics import quality
from refusal.sae.recipe import Recipe
from refusal.sae.rows import RowSplit, TensorRows
from refusal.sae.topk import TopKSae
from refusal.sae.trainer import Task, train_stack

N_TRAIN, N_HELDOUT = 60_000, 4_000


def make_world(d_model: int, n_features: int, n_active: int, zipf: float) -> dict[str, Tensor]:
    """Return rows that are sums of about `n_active` of `n_features` random directions, plus a mean and noise.

    Feature number r is active in proportion to r^-zipf of the rows, in half of them at most.
    """
    draw = torch.Generator().manual_seed(0)
    features = normalize(torch.randn(n_features, d_model, generator=draw), dim=1)
    rates = torch.arange(1, n_features + 1) ** -zipf
    rates = (rates / rates.sum() * n_active).clamp(max=0.5)
    parts = []
    for _ in range((N_TRAIN + N_HELDOUT) // 4_000):
        is_on = torch.rand(4_000, n_features, generator=draw) < rates
        sizes = torch.rand(4_000, n_features, generator=draw) + 0.5
        parts.append((is_on * sizes) @ features + 0.05 * torch.randn(4_000, d_model, generator=draw))
    acts = torch.cat(parts) + 0.3 * torch.randn(d_model, generator=draw)
    return {"train": acts[:N_TRAIN], "heldout": acts[N_TRAIN:], "features": features}


@dataclass(frozen=True)
class Trial:
    """One training to measure."""

    trainer: str
    """ours, ours bf16, ours dense, or a key of `PEERS`."""
    recipe: Recipe
    threads: int


@dataclass(frozen=True)
class Result:
    """What a training took and gave."""

    lr: float
    cpu_seconds: float
    wall_seconds: float
    peak_mib: float
    fvu: float
    l0: float
    dead_share: float
    recovery: float
    """Mean over the true features of the largest cosine with a decoder row."""

    def seconds(self, threads: int) -> float:
        """Return the seconds that count."""
        return self.cpu_seconds if threads == 1 else self.wall_seconds


# In the process of one training --------------------------------------------------------------------------------------


def measure(trial: Trial, world: dict[str, Tensor]) -> Result:
    """Train once and measure; a small training goes before, so that libraries are loaded."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(trial.threads)
    prepared = _prepare(trial, world["train"])
    with contextlib.redirect_stderr(io.StringIO()):
        _prepare(trial, torch.randn(4096, 8))(replace(trial.recipe, d_sae=64, k=2, steps=2))
        before = _reset_peak()
        cpu, wall = time.process_time(), time.perf_counter()
        sae = prepared(trial.recipe)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = _memory_kib("VmHWM") - before
    heldout = world["heldout"]
    found = quality(sae, TensorRows(heldout), torch.arange(len(heldout)), ["all"] * len(heldout))
    recovery = float((world["features"] @ sae.W_dec.T).max(1).values.mean())
    return Result(trial.recipe.lr, cpu, wall, peak / 1024, found.fvu, found.l0, found.dead_share, recovery)


def _prepare(trial: Trial, train: Tensor) -> Callable[[Recipe], TopKSae]:
    if trial.trainer in PEERS:
        peer = PEERS[trial.trainer]
        data = Scaled.of(train, peer.norm(train.shape[1]))
        return lambda recipe: peer.train(data, recipe)
    # The last rows decide which weights are kept, as in a real training; the peers train on them too.
    n = len(train)
    split = RowSplit(torch.arange(n - 2048), torch.ones(n - 2048, dtype=torch.float64), torch.arange(n - 2048, n))
    task = Task("benchmark", 0, TensorRows(train))

    def ours(recipe: Recipe) -> TopKSae:
        """Train with this project's trainer."""
        used = gradients.dense_gradients if trial.trainer == "ours dense" else objectives.gradients
        with mock.patch.object(objectives, "gradients", used):
            sae = train_stack([task], split, recipe)[0].sae
        assert isinstance(sae, TopKSae)
        return sae

    return ours


def _reset_peak() -> float:
    """Let the kernel count the peak anew (Linux only) and return what is in use, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory_kib("VmRSS")


def _memory_kib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1])


# In the main process -------------------------------------------------------------------------------------------------


def run(trial: Trial, world_file: Path, repeats: int) -> Result:
    """Return the results of a training in a process of its own: least times, the rest of the last."""
    results = []
    for _ in range(repeats):
        command = [sys.executable, "-m", "benchmarks.sae_training", "--trial", json.dumps(asdict(trial))]
        done = subprocess.run([*command, "--world", world_file], stdout=subprocess.PIPE, text=True, check=True)
        results.append(Result(**json.loads(done.stdout.splitlines()[-1])))
    least = {name: min(getattr(result, name) for result in results) for name in ("cpu_seconds", "wall_seconds")}
    return replace(results[-1], **least)


def floor(world: dict[str, Tensor], recipe: Recipe, threads: int, repeats: int) -> Result:
    """Return the time of the encoder's products of a whole training."""
    torch.set_num_threads(threads)
    acts, weights = world["train"][: recipe.batch_size], torch.randn(world["train"].shape[1], recipe.d_sae)
    out = acts @ weights
    cpus, walls = [], []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(recipe.steps):
            torch.mm(acts, weights, out=out)
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return Result(0, min(cpus), min(walls), 0, 0, 0, 0, 0)


def table(args: argparse.Namespace) -> None:
    """Run all trainings and print a row for each."""
    world = make_world(args.d_model, args.d_sae, args.k, args.zipf)
    lr = auto_lr(args.d_sae, args.d_model).value
    recipe = Recipe(args.d_sae, args.k, args.steps, args.batch_size, lr, n_evaluations=max(1, args.steps // 200))
    print(
        f"{N_TRAIN:,} rows, d_model {args.d_model}, d_sae {args.d_sae}, k {args.k}, {args.steps} x {args.batch_size}, "
        f"zipf {args.zipf:g}, threads: {args.threads}"
    )
    heads = ["lr", "vectors/s", "/floor", "/ours", "MiB", "FVU", "L0", "dead", "recovery"]
    print(f"{'':24s}" + "".join(f"{head:>11s}" for head in heads))
    n = args.steps * args.batch_size
    least = floor(world, recipe, args.threads, args.repeats)
    print(f"{'floor: encoder product':24s}{'':11s}{n / least.seconds(args.threads):11,.0f}{1:11.2f}", flush=True)
    ours: Result | None = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "world.pt"
        torch.save(world, file)
        del world
        for trainer, recipes in _trials(recipe, args):
            found = [run(Trial(trainer, each, args.threads), file, args.repeats) for each in recipes]
            best = min(found, key=lambda result: result.fvu)
            seconds = min(result.seconds(args.threads) for result in found)
            ours = ours or best
            ratios = (seconds / least.seconds(args.threads), seconds / ours.seconds(args.threads))
            print(
                f"{trainer:24s}{best.lr:11.2g}{n / seconds:11,.0f}{ratios[0]:11.2f}{ratios[1]:11.2f}"
                f"{best.peak_mib:11.0f}{best.fvu:11.3f}{best.l0:11.1f}{best.dead_share:11.3f}{best.recovery:11.3f}",
                flush=True,
            )


def _trials(recipe: Recipe, args: argparse.Namespace) -> list[tuple[str, list[Recipe]]]:
    """Return each trainer with the recipes to try."""
    mine = [
        ("ours", [recipe]),
        ("ours bf16", [replace(recipe, matmul_dtype="bfloat16")]),
        ("ours dense", [recipe]),
    ]
    n_lrs = 1 if args.speed else None
    peers = [(name, [replace(recipe, lr=lr) for lr in PEERS[name].lrs[:n_lrs]]) for name in installed()]
    return [trial for trial in mine + peers if not args.only or trial[0] in args.only]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("d-model", 256), ("d-sae", 2048), ("k", 16), ("batch-size", 1024), ("steps", 585)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--zipf", type=float, default=0.5, help="how unequal the frequencies of features are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="times each training runs; the least time counts")
    parser.add_argument("--speed", action="store_true", help="one learning rate for each peer; quality says nothing")
    parser.add_argument("--only", nargs="*", default=(), help="trainers to run, e.g. ours sparsify")
    parser.add_argument("--trial", type=_trial, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.trial is None:
        table(args)
    else:
        print(json.dumps(asdict(measure(args.trial, torch.load(args.world, weights_only=True)))))


def _trial(text: str) -> Trial:
    fields: dict[str, Any] = json.loads(text)
    return Trial(fields["trainer"], Recipe(**fields["recipe"]), fields["threads"])


if __name__ == "__main__":
    main()
