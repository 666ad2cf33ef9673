"""What each kind of SAE minimises, how it chooses latents, and what it is stored as.

All quantities are in normalised space (see `trainer`), all kinds aim at k active latents per row, so that kinds can be
compared at equal L0:

| architecture | latents | loss besides the mean squared error | stored as |
|---|---|---|---|
| `topk` | the k largest of a row | AuxK | topk |
| `batchtopk` | the k B largest of a batch of B rows | AuxK | jumprelu, one threshold for all |
| `matryoshka` | as batchtopk | the error of each prefix of the latents, AuxK | jumprelu, one threshold for all |
| `relu` | all positive | L1, its weight steered to k | standard |
| `jumprelu` | those above a threshold each | (L0 / k - 1)^2 by straight-through gradients | jumprelu |

Sources: Gao et al. 2406.04093 (TopK, AuxK); Bussmann et al. 2412.06410 (BatchTopK); Bussmann et al. 2503.17547
(Matryoshka); Cunningham et al. 2309.08600 (L1); Rajamanoharan et al. 2407.14435 (JumpReLU, equations 4, 9 and 11).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal.sae.base import SparseAutoencoder
from refusal.sae.gradients import AuxK, Step, Weights, aux_loss, gradients, products_in_bf16
from refusal.sae.selection import kth_largest, top_k
from refusal.sae.thresholded import JumpReluSae, ReluSae
from refusal.sae.topk import TopKSae

CPU = torch.device("cpu")
THRESHOLD_MEMORY = 0.99
"""Share of the running threshold that a step keeps; corrected for its start at 0, so that short trainings are right."""
PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Share of the latents in each Matryoshka prefix."""
L1_START = 1e-3
"""Weight of the L1 term at the start; a controller moves it to where L0 is k."""
L1_GAIN = 0.03
"""How much of the relative distance of L0 from k goes into the logarithm of that weight at each step."""
BANDWIDTH = 0.1
"""Width of the straight-through kernel around a threshold, in units of the root mean square of the pre-activations."""
L0_WEIGHT = 0.1
"""Weight of (L0 / k - 1)^2; the mean squared error of a coordinate is 1 before training."""
THRESHOLD_START = 0.05
"""JumpReLU thresholds at the start."""


class Objective(ABC):
    """One kind of SAE for a stack of `n_saes`; `k` is the number of active latents per row that it aims at."""

    def __init__(self, k: int, n_saes: int, device: torch.device = CPU, in_bf16: bool = False) -> None:
        self.k = k
        self.device = device
        self.in_bf16 = in_bf16
        """Whether matrix products of training are in bfloat16."""
        self.learned = {name: value.to(device) for name, value in self.initial(n_saes).items()}
        """What is learned without gradients, by SAE of the stack."""

    def initial(self, n_saes: int) -> dict[str, Tensor]:
        """Return what `learned` is at the start."""
        return {}

    @abstractmethod
    def step(self, weights: Weights, acts: Float[Tensor, "sae batch d_model"], aux: AuxK | None) -> Step:
        """Return the gradients of a batch, and learn from it what is not learned by gradients."""

    @abstractmethod
    def latents(self, weights: Weights, acts: Float[Tensor, "sae row d_model"]) -> Float[Tensor, "sae row d_sae"]:
        """Return the latents as the stored SAE chooses them."""

    @abstractmethod
    def stored(self, tensors: Mapping[str, Tensor]) -> SparseAutoencoder:
        """Return the SAE of folded weights (`threshold` among them)."""

    def start(self, weights: Weights) -> Weights:
        """Return the weights to start from."""
        return weights

    def complete(self, weights: Weights) -> Weights:
        """Return the weights with what was not learned by gradients filled in."""
        return weights

    def keep(self, places: Int[Tensor, " place"]) -> None:
        """Let all SAEs but those at `places` leave the stack."""
        self.learned = {name: tensor[places] for name, tensor in self.learned.items()}


def pre_activations(weights: Weights, acts: Float[Tensor, "sae row d_model"]) -> Float[Tensor, "sae row d_sae"]:
    """Return (x - b_dec) W_enc + b_enc."""
    return torch.baddbmm(weights.b_enc[:, None], acts - weights.b_dec[:, None], weights.enc.mT)


def _without_threshold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "threshold"}


class TopK(Objective):
    """The k largest pre-activations of each row; gradients that touch only these."""

    def step(self, weights: Weights, acts: Float[Tensor, "sae batch d_model"], aux: AuxK | None) -> Step:
        """Return the gradients of a batch."""
        return gradients(weights, acts, self.k, aux, self.in_bf16)

    def latents(self, weights: Weights, acts: Float[Tensor, "sae row d_model"]) -> Float[Tensor, "sae row d_sae"]:
        """Return the k largest of each row, if positive."""
        pre = pre_activations(weights, acts)
        chosen = top_k(pre, self.k)
        return torch.zeros_like(pre).scatter_(-1, chosen, pre.gather(-1, chosen).relu())

    def stored(self, tensors: Mapping[str, Tensor]) -> TopKSae:
        """Return a TopK SAE."""
        return TopKSae(_without_threshold(tensors), k=self.k)


class _Autograd(Objective):
    """A kind whose loss is written down and differentiated by torch."""

    @abstractmethod
    def loss(
        self, w: Weights, acts: Float[Tensor, "sae batch d_model"], aux: AuxK | None
    ) -> tuple[Float[Tensor, " sae"], Float[Tensor, " sae"], Float[Tensor, "sae batch d_sae"]]:
        """Return the loss to minimise, its mean squared error alone, and the latents."""

    def step(self, weights: Weights, acts: Float[Tensor, "sae batch d_model"], aux: AuxK | None) -> Step:
        """Return the gradients of a batch by autograd."""
        w = Weights(*(tensor.detach().requires_grad_() for tensor in weights))
        with products_in_bf16(self.device, self.in_bf16):
            loss, error, latents = self.loss(w, acts, aux)
        found = torch.autograd.grad(loss.sum(), w, allow_unused=True)
        # Contiguous, because the fused Adam reads gradients as if they lay like the weights.
        filled = (
            torch.zeros_like(weight) if gradient is None else gradient.contiguous()
            for weight, gradient in zip(weights, found, strict=True)
        )
        return Step(Weights(*filled), error.detach(), (latents.detach() > 0).sum(1).to(acts.dtype))


def _mean_square(error: Float[Tensor, "sae batch d_model"]) -> Float[Tensor, " sae"]:
    return error.square().mean((1, 2))


def decode(w: Weights, latents: Float[Tensor, "sae row d_sae"]) -> Float[Tensor, "sae row d_model"]:
    """Return the reconstruction."""
    return torch.baddbmm(w.b_dec[:, None], latents, w.dec)


class BatchTopK(_Autograd):
    """The k B largest pre-activations of a batch of B rows, so that a row may have more than another.

    Outside training a batch must not matter: latents above a threshold are kept, the mean over steps of the smallest
    pre-activation that a batch kept.
    """

    def initial(self, n_saes: int) -> dict[str, Tensor]:
        """Return running sums of the threshold and of its weights."""
        return {"sum": torch.zeros(n_saes), "weight": torch.zeros(n_saes)}

    @property
    def threshold(self) -> Float[Tensor, " sae"]:
        """The threshold of each SAE."""
        return self.learned["sum"] / self.learned["weight"].clamp_min(1e-12)

    def chosen(self, pre: Float[Tensor, "sae batch d_sae"]) -> Float[Tensor, "sae batch d_sae"]:
        """Return the batch's latents and take note of the smallest."""
        limit = kth_largest(pre.reshape(len(pre), -1), self.k * pre.shape[1])
        for name, value in (("sum", limit), ("weight", torch.ones_like(limit))):
            self.learned[name] = THRESHOLD_MEMORY * self.learned[name] + (1 - THRESHOLD_MEMORY) * value
        return pre.relu() * (pre >= limit[:, None, None])

    def loss(
        self, w: Weights, acts: Float[Tensor, "sae batch d_model"], aux: AuxK | None
    ) -> tuple[Float[Tensor, " sae"], Float[Tensor, " sae"], Float[Tensor, "sae batch d_sae"]]:
        """Return mean squared error and AuxK."""
        pre = pre_activations(w, acts)
        latents = self.chosen(pre)
        error = acts - decode(w, latents)
        found = _mean_square(error)
        return found + self._aux(w, pre, error, aux), found, latents

    def _aux(
        self,
        w: Weights,
        pre: Float[Tensor, "sae batch d_sae"],
        error: Float[Tensor, "sae batch d_model"],
        aux: AuxK | None,
    ) -> Float[Tensor, " sae"]:
        if aux is None or not bool(aux.dead.any()):
            return error.new_zeros(len(error))
        return aux.coefficient * aux_loss(w, pre, error.detach(), aux.dead)

    def latents(self, weights: Weights, acts: Float[Tensor, "sae row d_model"]) -> Float[Tensor, "sae row d_sae"]:
        """Return the pre-activations above the threshold."""
        pre = pre_activations(weights, acts)
        return pre.relu() * (pre > self.threshold[:, None, None])

    def complete(self, weights: Weights) -> Weights:
        """Return the weights with the threshold."""
        return weights._replace(threshold=self.threshold[:, None].expand_as(weights.b_enc).clone())

    def stored(self, tensors: Mapping[str, Tensor]) -> JumpReluSae:
        """Return a JumpReLU SAE with one threshold for all latents."""
        return JumpReluSae(tensors)


class Matryoshka(BatchTopK):
    """BatchTopK whose first latents must do well without the later ones, so that general latents come first."""

    def loss(
        self, w: Weights, acts: Float[Tensor, "sae batch d_model"], aux: AuxK | None
    ) -> tuple[Float[Tensor, " sae"], Float[Tensor, " sae"], Float[Tensor, "sae batch d_sae"]]:
        """Return the mean over prefixes of their mean squared errors, and AuxK."""
        pre = pre_activations(w, acts)
        latents = self.chosen(pre)
        reconstruction, first = w.b_dec[:, None].expand_as(acts), 0
        errors = []
        for last in prefix_sizes(w.b_enc.shape[1]):
            part = slice(first, last)
            reconstruction = torch.baddbmm(reconstruction, latents[:, :, part], w.dec[:, part])
            errors.append(_mean_square(acts - reconstruction))
            first = last
        aux_term = self._aux(w, pre, acts - reconstruction, aux)
        return torch.stack(errors).mean(0) + aux_term, errors[-1], latents


def prefix_sizes(d_sae: int) -> Sequence[int]:
    """Return the number of latents in each prefix, ascending, the last all of them.

    >>> prefix_sizes(64)
    [4, 8, 16, 32, 64]
    """
    return sorted({max(1, round(share * d_sae)) for share in PREFIXES})


class Relu(_Autograd):
    """All positive pre-activations, kept few by an L1 term whose weight is steered until L0 is k.

    A fixed weight lets L0 drift with width and data, so that nothing can be compared. The logarithm of the weight moves
    with the relative distance of the batch's L0 from k (an integral controller).
    """

    def initial(self, n_saes: int) -> dict[str, Tensor]:
        """Return the weights of the L1 terms."""
        return {"l1": torch.full((n_saes,), L1_START)}

    def loss(
        self, w: Weights, acts: Float[Tensor, "sae batch d_model"], aux: AuxK | None
    ) -> tuple[Float[Tensor, " sae"], Float[Tensor, " sae"], Float[Tensor, "sae batch d_sae"]]:
        """Return mean squared error and the L1 of the latents (decoder rows have unit norm), mean over rows."""
        latents = pre_activations(w, acts).relu()
        found = _mean_square(acts - decode(w, latents))
        penalty = latents.sum(2).mean(1) / acts.shape[2] ** 0.5
        total = found + self.learned["l1"] * penalty
        l0 = (latents.detach() > 0).sum(2).float().mean(1)
        self.learned["l1"] = self.learned["l1"] * torch.exp(L1_GAIN * ((l0 - self.k) / self.k).clamp(-1, 1))
        return total, found, latents

    def latents(self, weights: Weights, acts: Float[Tensor, "sae row d_model"]) -> Float[Tensor, "sae row d_sae"]:
        """Return the positive pre-activations."""
        return pre_activations(weights, acts).relu()

    def stored(self, tensors: Mapping[str, Tensor]) -> ReluSae:
        """Return a ReLU SAE."""
        return ReluSae(_without_threshold(tensors))


class JumpRelu(_Autograd):
    """Pre-activations above a threshold of their own, which is learned by straight-through gradients."""

    def start(self, weights: Weights) -> Weights:
        """Return the weights with all thresholds slightly above 0."""
        return weights._replace(threshold=torch.full_like(weights.threshold, THRESHOLD_START))

    def loss(
        self, w: Weights, acts: Float[Tensor, "sae batch d_model"], aux: AuxK | None
    ) -> tuple[Float[Tensor, " sae"], Float[Tensor, " sae"], Float[Tensor, "sae batch d_sae"]]:
        """Return mean squared error and the squared relative distance of L0 from k."""
        pre = pre_activations(w, acts)
        width = BANDWIDTH * pre.detach().square().mean((1, 2)).sqrt()[:, None, None]
        threshold = w.threshold[:, None]
        is_on: Tensor = _Step.apply(pre, threshold, width)  # type: ignore[no-untyped-call]
        latents = pre * is_on
        found = _mean_square(acts - decode(w, latents))
        l0 = is_on.sum(2).mean(1)
        return found + L0_WEIGHT * (l0 / self.k - 1).square(), found, latents

    def latents(self, weights: Weights, acts: Float[Tensor, "sae row d_model"]) -> Float[Tensor, "sae row d_sae"]:
        """Return the pre-activations above their thresholds."""
        pre = pre_activations(weights, acts)
        return pre.relu() * (pre > weights.threshold[:, None])

    def stored(self, tensors: Mapping[str, Tensor]) -> JumpReluSae:
        """Return a JumpReLU SAE."""
        return JumpReluSae(tensors)


class _Step(torch.autograd.Function):
    """H(pre - threshold) whose gradient is that of a ramp of the given width: 1/width inside, 0 outside."""

    @staticmethod
    def forward(context: object, pre: Tensor, threshold: Tensor, width: Tensor) -> Tensor:
        """Return 1 where a pre-activation is above its threshold and positive, else 0."""
        context.save_for_backward(pre, threshold, width)  # type: ignore[attr-defined]
        return ((pre > threshold) & (pre > 0)).to(pre.dtype)

    @staticmethod
    def backward(context: object, upstream: Tensor) -> tuple[None, Tensor, None]:
        """Return the gradient with respect to the threshold."""
        pre, threshold, width = context.saved_tensors  # type: ignore[attr-defined]
        near = ((pre - threshold).abs() < width / 2).to(pre.dtype)
        return None, (-near / width * upstream).sum(1, keepdim=True), None


OBJECTIVES: dict[str, type[Objective]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "relu": Relu,
    "jumprelu": JumpRelu,
}
"""By the name in `sae.architecture`."""
