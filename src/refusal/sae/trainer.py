"""Train TopK SAEs, several at once: the sites and seeds of a model are one stacked job.

At the size of a refusal study (thousands of activations) one SAE is too small to keep a processor busy; stacked on a
leading axis they share every operation. Each keeps its own data order, initialisation and dead-latent count, so an SAE
trained in a stack equals the one trained alone up to rounding.

1. Activations are centred and scaled to mean squared norm d_model; both are folded into the weights at the end.
2. Decoder rows start as independent random unit vectors, the encoder as their transpose, biases at zero.
3. Each step: encode, keep the k largest, decode, mean squared error plus AuxK for latents that died; Adam; unit rows.
4. Held-out prompts give the FVU that stops training; the best weights are kept.

Source: Gao et al. 2406.04093 (TopK, AuxK, sections 2 and A).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal.errors import InputError
from refusal.sae.base import TopK

EVALUATE_EVERY = 50
"""Steps between held-out evaluations."""
PATIENCE = 6
"""Evaluations without a better held-out FVU after which an SAE is no longer improved."""
DEAD_AFTER_EPOCHS = 4
"""Passes over the data without firing after which a latent is dead. In epochs: token counts never end at our sizes."""
AUX_WEIGHT = 1 / 32


@dataclass(frozen=True)
class TrainingSettings:
    """Resolved settings of a training."""

    d_sae: int
    k: int
    steps: int
    batch_size: int
    lr: float


@dataclass(frozen=True)
class TrainingData:
    """Activations of one site."""

    acts: Float[Tensor, "row d_model"]
    is_held_out: Bool[Tensor, " row"]
    """Rows that judge, never train."""
    weight: Float[Tensor, " row"]
    """Relative frequency with which a training row is drawn; balances the categories."""


@dataclass(frozen=True)
class TrainedSae:
    """One SAE with what its training looked like."""

    sae: TopK
    history: list[dict[str, float]]
    """Per evaluation: step, train_fvu, held_out_fvu."""
    best_step: int


Progress = Callable[[int], object]


def train_topk(
    sites: Sequence[TrainingData],
    seeds: Sequence[int],
    settings: TrainingSettings,
    progress: Progress = lambda steps: None,
) -> list[list[TrainedSae]]:
    """Return `[site][seed]` SAEs.

    Args:
        sites: Data of equal width.
        seeds: Independent initialisations and data orders.
        settings: Shared by all.
        progress: Called with the number of steps done since the last call.

    Raises:
        InputError: Activations that are not finite or all equal, or settings that do not fit them.
    """
    for data in sites:
        _check(data, settings)
    stack = _Stack(sites, seeds, settings)
    for step in range(1, settings.steps + 1):
        stack.step(step)
        progress(1)
        if (step % EVALUATE_EVERY == 0 or step == settings.steps) and stack.evaluate(step):
            progress(settings.steps - step)
            break
    return [[stack.result(i * len(seeds) + j) for j in range(len(seeds))] for i in range(len(sites))]


def _check(data: TrainingData, settings: TrainingSettings) -> None:
    acts = data.acts
    if not torch.isfinite(acts).all():
        raise InputError("sae: activations hold NaN or infinite values; run the inference stage anew with dtype: float32")
    if len(acts) < 2 or float(acts.var(0).sum()) == 0:
        raise InputError(f"sae: the {len(acts)} activations are all equal, so there is nothing to learn from them")
    if settings.k > settings.d_sae:
        raise InputError(f"sae.k: found {settings.k}, more than d_sae ({settings.d_sae}); k counts active latents")


class _Stack:
    """S SAEs in training; tensors have a leading `sae` axis."""

    def __init__(self, sites: Sequence[TrainingData], seeds: Sequence[int], settings: TrainingSettings) -> None:
        self.settings = settings
        self.site_of = [index for index in range(len(sites)) for _ in seeds]
        self.seed_of = [seed for _ in sites for seed in seeds]
        self.mean, self.scale, self.train, self.held, self.weight = [], [], [], [], []
        for data in sites:
            train = data.acts[~data.is_held_out].float()
            mean = train.mean(0)
            scale = ((train - mean).square().sum(1).mean() / train.shape[1]).sqrt()
            self.mean.append(mean)
            self.scale.append(scale)
            self.train.append((train - mean) / scale)
            self.held.append((data.acts[data.is_held_out].float() - mean) / scale)
            self.weight.append(data.weight[~data.is_held_out].double())
        d_model, n = self.train[0].shape[1], len(self.site_of)
        self.generators = [torch.Generator().manual_seed(seed) for seed in self.seed_of]
        rows = torch.stack([torch.randn(settings.d_sae, d_model, generator=g) for g in self.generators])
        self.W_dec = torch.nn.functional.normalize(rows, dim=-1).requires_grad_()
        self.W_enc = self.W_dec.detach().transpose(1, 2).contiguous().requires_grad_()
        self.b_enc = torch.zeros(n, 1, settings.d_sae, requires_grad=True)
        self.b_dec = torch.zeros(n, 1, d_model, requires_grad=True)
        self.parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.lr, fused=True)
        self.since_fired = torch.zeros(n, settings.d_sae)
        self.best = [float("inf")] * n
        self.best_step = [0] * n
        self.best_weights = [self._weights(index) for index in range(n)]
        self.history: list[list[dict[str, float]]] = [[] for _ in range(n)]
        self.last_loss = torch.zeros(n)

    def step(self, step: int) -> None:
        """Take one optimiser step."""
        settings = self.settings
        batch = torch.stack([self._draw(index) for index in range(len(self.site_of))])
        pre = torch.baddbmm(self.b_enc, batch - self.b_dec, self.W_enc)
        top = pre.topk(settings.k, dim=-1)
        latents = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
        reconstruction = torch.baddbmm(self.b_dec, latents, self.W_dec)
        error = batch - reconstruction
        per_sae = error.square().mean((1, 2))
        loss = per_sae.sum() + self._aux(pre, error, top.indices)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * _schedule(step, settings.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.W_dec.div_(self.W_dec.norm(dim=-1, keepdim=True).clamp_min(1e-8))
            self.last_loss = per_sae.detach()

    def _draw(self, index: int) -> Float[Tensor, "row d_model"]:
        site = self.site_of[index]
        rows = torch.multinomial(
            self.weight[site], self.settings.batch_size, replacement=True, generator=self.generators[index]
        )
        return self.train[site][rows]

    def _aux(
        self, pre: Float[Tensor, "sae row d_sae"], error: Float[Tensor, "sae row d_model"], active: Int[Tensor, "..."]
    ) -> Tensor:
        """Return the AuxK loss: dead latents reconstruct what the living ones leave over. Counts the dead on the way."""
        with torch.no_grad():
            fired = torch.zeros_like(self.since_fired).scatter(1, active.flatten(1), 1.0)
            self.since_fired = (self.since_fired + 1) * (1 - fired)
            per_epoch = max(1, len(self.train[0]) // self.settings.batch_size)
            dead = self.since_fired > DEAD_AFTER_EPOCHS * per_epoch
        if not dead.any():
            return pre.new_zeros(())
        k_aux = min(pre.shape[-1] // 4 + 1, pre.shape[-1])
        masked = pre.masked_fill(~dead[:, None, :], -torch.inf)
        top = masked.topk(k_aux, dim=-1)
        values = torch.where(torch.isfinite(top.values), top.values, 0.0).relu()
        latents = torch.zeros_like(pre).scatter(-1, top.indices, values)
        target = error.detach()
        loss = (target - latents @ self.W_dec).square().mean((1, 2))
        return AUX_WEIGHT * (loss * dead.any(1)).sum()

    @torch.no_grad()
    def evaluate(self, step: int) -> bool:
        """Record the held-out FVU of each SAE, keep the best weights; return whether none improves any more."""
        for index, site in enumerate(self.site_of):
            held = self.held[site] if len(self.held[site]) else self.train[site]
            fvu = self._fvu(index, held)
            train_fvu = float(self.last_loss[index])
            self.history[index].append({"step": step, "train_fvu": train_fvu, "held_out_fvu": fvu})
            if fvu < self.best[index]:
                self.best[index], self.best_step[index] = fvu, step
                self.best_weights[index] = self._weights(index)
        return all(step - best >= PATIENCE * EVALUATE_EVERY for best in self.best_step)

    def _fvu(self, index: int, acts: Float[Tensor, "row d_model"]) -> float:
        W_enc, b_enc, W_dec, b_dec = self._weights(index)
        sae = TopK(W_enc, b_enc, W_dec, b_dec, k=self.settings.k)
        return float(sae(acts).error.square().sum() / (acts - acts.mean(0)).square().sum())

    def _weights(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        W_enc, b_enc, W_dec, b_dec = (parameter[index].detach().clone() for parameter in self.parameters)
        return W_enc, b_enc[0], W_dec, b_dec[0]

    def result(self, index: int) -> TrainedSae:
        """Return one SAE in raw space: x' = (x - mean) / scale folded in, decoder rows of norm 1."""
        W_enc, b_enc, W_dec, b_dec = self.best_weights[index]
        mean, scale = self.mean[self.site_of[index]], self.scale[self.site_of[index]]
        # latents of the folded SAE are `scale` times those of training: the same direction, in raw units
        sae = TopK(W_enc, b_enc * scale, W_dec, mean + b_dec * scale, k=self.settings.k)
        return TrainedSae(sae, self.history[index], self.best_step[index])


def _schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up over a twentieth, linear decay over the last fifth."""
    return min(1.0, step / max(1, steps // 20), (steps - step + 1) / max(1, steps // 5))
