"""TopK training by other libraries on the same rows: SAELens, sparsify, dictionary_learning.

Each runs its own loop and optimiser at the learning rate given, on centred rows scaled to what it recommends, and
returns the SAE in raw space. sparsify and dictionary_learning are no dependencies: `pip install eai-sparsify
dictionary-learning` where they are wanted; those that are absent are left out. Scaling is not part of what is timed.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from refusal.sae.recipe import Recipe
from refusal.sae.topk import TopKSae


@dataclass(frozen=True)
class Scaled:
    """The training rows with mean 0 and a given mean norm."""

    rows: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, acts: Tensor, norm: float) -> Scaled:
        """Return training rows with this mean norm."""
        mean = acts.mean(0)
        rows = acts - mean
        scale = norm / rows.norm(dim=1).mean()
        return cls(rows.mul_(scale), mean, scale)

    def batches(self, recipe: Recipe) -> Iterator[Tensor]:
        """Yield the batches of a training, epochs in random order."""
        torch.manual_seed(0)
        n_epochs = recipe.steps * recipe.batch_size // len(self.rows) + 2
        order = torch.cat([torch.randperm(len(self.rows)) for _ in range(n_epochs)])
        return (self.rows[part] for part in order.split(recipe.batch_size))

    def stored(self, enc: Tensor, b_enc: Tensor, dec: Tensor, b_dec: Tensor, k: int) -> TopKSae:
        """Return an SAE that acts on raw rows: `enc` and `dec` are [d_sae, d_model]."""
        norms = dec.norm(dim=1)
        tensors = {
            "W_enc": (enc * norms[:, None]).T.contiguous(),
            "b_enc": b_enc * norms / self.scale,
            "W_dec": dec / norms[:, None],
            "b_dec": self.mean + b_dec / self.scale,
        }
        return TopKSae({name: tensor.detach() for name, tensor in tensors.items()}, k=k)


def sae_lens(data: Scaled, recipe: Recipe) -> TopKSae:
    """Train with SAELens' own trainer; rows of norm sqrt(d_model)."""
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    batches = data.batches(recipe)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=data.rows.shape[1], d_sae=recipe.d_sae, k=recipe.k))
    config = SAETrainerConfig(
        total_training_samples=recipe.steps * recipe.batch_size,
        train_batch_size_samples=recipe.batch_size,
        lr=recipe.lr,
        lr_end=recipe.lr / 10,
        lr_warm_up_steps=round(recipe.steps * recipe.warmup_share),
        lr_decay_steps=round(recipe.steps * recipe.decay_share),
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(config, sae, batches).fit()
    return data.stored(sae.W_enc.T, sae.b_enc, sae.W_dec, sae.b_dec, recipe.k)


def sparsify(data: Scaled, recipe: Recipe) -> TopKSae:
    """Train sparsify's `SparseCoder` with Adam as its trainer does (FVU loss, unit decoder rows); rows of norm 1."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder
    from transformers import get_linear_schedule_with_warmup

    batches = data.batches(recipe)
    coder = SparseCoder(data.rows.shape[1], SparseCoderConfig(num_latents=recipe.d_sae, k=recipe.k))
    optimiser = torch.optim.Adam(coder.parameters(), lr=recipe.lr)
    schedule = get_linear_schedule_with_warmup(optimiser, round(recipe.steps * recipe.warmup_share), recipe.steps)
    for _ in range(recipe.steps):
        coder(next(batches)).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        coder.set_decoder_norm_to_unit_norm()
    return data.stored(coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec, recipe.k)


def dictionary_learning(data: Scaled, recipe: Recipe) -> TopKSae:
    """Train with dictionary_learning's `TopKTrainer`; rows of norm sqrt(d_model)."""
    _stub_nnsight()
    from dictionary_learning.trainers.top_k import TopKTrainer

    batches = data.batches(recipe)
    trainer = TopKTrainer(
        steps=recipe.steps,
        activation_dim=data.rows.shape[1],
        dict_size=recipe.d_sae,
        k=recipe.k,
        layer=0,
        lm_name="none",
        lr=recipe.lr,
        warmup_steps=round(recipe.steps * recipe.warmup_share),
        decay_start=round(recipe.steps * (1 - recipe.decay_share)),
        seed=0,
        device="cpu",
    )
    for step in range(recipe.steps):
        trainer.update(step, next(batches))
    ae = trainer.ae
    return data.stored(ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec, recipe.k)


def _stub_nnsight() -> None:
    """Let dictionary_learning load without nnsight, which only its activation buffers use."""
    if "nnsight" not in sys.modules and importlib.util.find_spec("nnsight") is None:
        stub = types.ModuleType("nnsight")
        stub.LanguageModel = object  # type: ignore[attr-defined]
        sys.modules["nnsight"] = stub


@dataclass(frozen=True)
class Peer:
    """A library to compare with."""

    train: Callable[[Scaled, Recipe], TopKSae]
    norm: Callable[[int], float]
    """Mean norm of rows it recommends, by d_model."""
    lrs: tuple[float, ...]
    """Learning rates to try, its own default among them: the best counts."""


PEERS = {
    "sae_lens": Peer(sae_lens, math.sqrt, (3e-4, 1e-3, 3e-3)),
    "sparsify": Peer(sparsify, lambda _: 1.0, (6e-4, 2e-3, 5e-3)),
    "dictionary_learning": Peer(dictionary_learning, math.sqrt, (6e-4, 2e-3, 5e-3)),
}


def installed() -> list[str]:
    """Return the peers that are here."""
    return [name for name in PEERS if importlib.util.find_spec(name) is not None]
