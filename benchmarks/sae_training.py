"""Speed and quality of TopK training on one core: ours, the same loss through dense autograd, SAELens, and the floor.

    python benchmarks/sae_training.py [--steps 585] [--d-sae 2048]

All train on the same rows in batches of the same size, with the same k, so held-out L0 is equal. Rows are made of known
sparse features, so how many of them come back can be counted. The floor is the encoder's matrix product alone, once
forward per batch: nothing that looks at all latents can be faster. Times are CPU times of one thread; on a shared
machine only ratios mean something.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from refusal.sae import gradients, trainer
from refusal.sae.metrics import quality
from refusal.sae.rows import RowSplit, TensorRows
from refusal.sae.topk import TopKSae
from refusal.sae.trainer import Recipe, Task, train_stack

N_TRAIN, N_HELDOUT = 60_000, 4_000


@dataclass(frozen=True)
class World:
    """Rows and the features they are made of."""

    acts: Tensor
    features: Tensor
    split: RowSplit


def make_world(d_model: int, n_features: int, n_active: int, seed: int = 0) -> World:
    """Return rows that are sums of about `n_active` of `n_features` random directions, plus a mean and noise."""
    draw = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(n_features, d_model, generator=draw), dim=1)
    rates = torch.arange(1, n_features + 1).float().rsqrt()
    rates = (rates / rates.sum() * n_active).clamp(max=0.5)
    parts = []
    for _ in range((N_TRAIN + N_HELDOUT) // 4_000):
        is_on = torch.rand(4_000, n_features, generator=draw) < rates
        sizes = torch.rand(4_000, n_features, generator=draw) + 0.5
        parts.append((is_on * sizes) @ features + 0.05 * torch.randn(4_000, d_model, generator=draw))
    acts = torch.cat(parts) + 0.3 * torch.randn(d_model, generator=draw)
    train, heldout = torch.arange(N_TRAIN), torch.arange(N_TRAIN, N_TRAIN + N_HELDOUT)
    return World(acts, features, RowSplit(train, torch.ones(N_TRAIN, dtype=torch.float64), heldout))


def ours(world: World, recipe: Recipe) -> TopKSae:
    """Train with this project's trainer."""
    return train_stack([Task("bench", 0, TensorRows(world.acts))], world.split, recipe)[0].sae


def ours_dense(world: World, recipe: Recipe) -> TopKSae:
    """Train with this project's trainer, gradients by autograd through dense latents."""
    sparse = trainer.gradients
    trainer.gradients = gradients.dense_gradients
    try:
        return ours(world, recipe)
    finally:
        trainer.gradients = sparse


def sae_lens(world: World, recipe: Recipe) -> TopKSae:
    """Train with SAELens' own trainer at its defaults, on centred rows scaled as it recommends."""
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    torch.manual_seed(0)
    train = world.acts[world.split.train]
    mean = train.mean(0)
    scale = (train.shape[1] ** 0.5) / (train - mean).norm(dim=1).mean()
    rows = (train - mean) * scale
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=recipe.d_sae, k=recipe.k))
    n_samples = recipe.steps * recipe.batch_size
    config = SAETrainerConfig(
        total_training_samples=n_samples,
        train_batch_size_samples=recipe.batch_size,
        lr=recipe.lr,
        lr_end=recipe.lr / 10,
        lr_warm_up_steps=round(recipe.steps * recipe.warmup_share),
        lr_decay_steps=round(recipe.steps * recipe.decay_share),
        logger=LoggingConfig(log_to_wandb=False),
    )
    order = torch.cat([torch.randperm(len(rows)) for _ in range(n_samples // len(rows) + 2)])
    batches = iter([rows[part] for part in order.split(recipe.batch_size)])
    SAETrainer(config, sae, batches).fit()
    norms = sae.W_dec.detach().norm(dim=1)
    tensors = {
        "W_enc": sae.W_enc.detach() * norms,
        "b_enc": sae.b_enc.detach() * norms / scale,
        "W_dec": sae.W_dec.detach() / norms[:, None],
        "b_dec": mean + sae.b_dec.detach() / scale,
    }
    return TopKSae(tensors, k=recipe.k)


def floor_seconds(world: World, recipe: Recipe) -> float:
    """Return the CPU time of the encoder's products of a whole training."""
    acts, weights = world.acts[: recipe.batch_size], torch.randn(world.acts.shape[1], recipe.d_sae)
    out = acts @ weights
    start = time.process_time()
    for _ in range(recipe.steps):
        torch.mm(acts, weights, out=out)
    return time.process_time() - start


def report(name: str, train: Callable[[World, Recipe], TopKSae], world: World, recipe: Recipe, floor: float) -> None:
    """Train, measure and print a row of the table."""
    start = time.process_time()
    sae = train(world, recipe)
    seconds = time.process_time() - start
    rows = world.split.heldout
    found = quality(sae, TensorRows(world.acts), rows, ["all"] * len(rows))
    cosines = (world.features @ sae.W_dec.T).max(1).values
    print(
        f"{name:32s} {recipe.steps * recipe.batch_size / seconds:12,.0f} {seconds:8.1f} {seconds / floor:8.2f} "
        f"{found.fvu:8.3f} {found.l0:6.1f} {found.dead_share:6.3f} {float(cosines.mean()):9.3f}",
        flush=True,
    )


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=585)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    world = make_world(args.d_model, args.d_sae, args.k)
    recipe = Recipe(args.d_sae, args.k, args.steps, args.batch_size, lr=8e-3, n_evaluations=5)
    floor = floor_seconds(world, recipe)
    print(f"{N_TRAIN:,} rows, d_model {args.d_model}, d_sae {args.d_sae}, k {args.k}, {args.steps} x {args.batch_size}")
    heads = f"{'vectors / s':>12s} {'CPU s':>8s} {'/ floor':>8s} {'FVU out':>8s} {'L0':>6s} {'dead':>6s}"
    print(f"{'':32s} {heads} {'recovery':>9s}")
    print(f"{'floor: encoder product':32s} {recipe.steps * recipe.batch_size / floor:12,.0f} {floor:8.1f} {1:8.2f}")
    report("ours", ours, world, recipe, floor)
    report("ours, dense autograd", ours_dense, world, recipe, floor)
    try:
        import sae_lens as _  # noqa: F401  (absent without the development extras)
    except ImportError:
        print("SAELens is not installed: pip install -e .[dev]")
        return
    for lr in (3e-4, 1e-3, 3e-3):
        report(f"SAELens, lr {lr:g}", sae_lens, world, replace(recipe, lr=lr), floor)


if __name__ == "__main__":
    main()
