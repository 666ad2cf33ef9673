"""Gradients of the TopK loss for a stack of SAEs of equal shape: the inner loop of training.

The axis `sae` runs over SAEs trained at once (seeds, sites): for small SAEs an operation costs more to start than to
do, so a stack of twelve takes hardly longer than one. All quantities are in normalised space (see `trainer`).

Loss of one SAE, with e = x - x_hat, over a batch of B rows of d = d_model:

    L = sum e^2 / (B d)  +  alpha * sum (e - e_hat)^2 / sum e^2      (second denominator and e held fixed)

e_hat is the reconstruction of the error by the d/2 largest pre-activations of *dead* latents (AuxK). Two forms give the
same gradients: `dense_gradients` by autograd, the definition; `sparse_gradients` touches only active latents:

1. pre-activations by one matrix product, the only dense step; it may be in bfloat16, which then only chooses latents;
2. the k largest of each row (`top_k`);
3. decode as a weighted sum of k rows (`embedding_bag`);
4. the same structure backwards: gradients of values, of decoder rows and of encoder rows are sums over active latents;
5. the encoder's share of the gradient of b_dec is summed over the batch before it is multiplied by W_enc.

Source: Gao et al. 2406.04093, sections 2.3, 2.4, appendix A.2 (AuxK) and D (sparse kernels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import embedding_bag

from refusal.sae.selection import top_k

SPARSE_BELOW = 0.25
"""Share k / d_sae up to which touching only active latents beats matrix products on a CPU."""


class Weights(NamedTuple):
    """Weights of a stack in normalised space, or their gradients; encoder rows lie as decoder rows do."""

    enc: Float[Tensor, "sae d_sae d_model"]
    """Transpose of W_enc."""
    b_enc: Float[Tensor, "sae d_sae"]
    dec: Float[Tensor, "sae d_sae d_model"]
    """W_dec, rows of unit norm."""
    b_dec: Float[Tensor, "sae d_model"]
    threshold: Float[Tensor, "sae d_sae"]
    """Thresholds of kinds that have them, else 0."""


@dataclass(frozen=True)
class AuxK:
    """The term that gives dead latents a gradient."""

    coefficient: float
    """alpha in the loss."""
    dead: Bool[Tensor, "sae d_sae"]
    """True for dead latents."""


class Step(NamedTuple):
    """What one batch gives."""

    gradients: Weights
    loss: Float[Tensor, " sae"]
    """First term of the loss of each SAE: about the share of variance unexplained."""
    fired: Float[Tensor, "sae d_sae"]
    """Rows of the batch in which each latent is active."""


def gradients(
    weights: Weights,
    acts: Float[Tensor, "sae batch d_model"],
    k: int,
    aux: AuxK | None,
    in_bf16: bool = False,
) -> Step:
    """Return the gradients by whichever form is faster here; `in_bf16` has matrix products in bfloat16."""
    is_sparse = acts.device.type == "cpu" and k <= SPARSE_BELOW * weights.b_enc.shape[1]
    return (sparse_gradients if is_sparse else dense_gradients)(weights, acts, k, aux, in_bf16)


def products_in_bf16(device: torch.device, enabled: bool) -> torch.autocast:
    """Return a context in which matrix products run in bfloat16; weights, sums and errors stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def dense_gradients(
    weights: Weights,
    acts: Float[Tensor, "sae batch d_model"],
    k: int,
    aux: AuxK | None,
    in_bf16: bool = False,
) -> Step:
    """Return the gradients by autograd through dense latents; this is the definition of the loss."""
    n_rows, d_model = acts.shape[1:]
    w = Weights(*(tensor.detach().requires_grad_() for tensor in weights))
    centred = acts - w.b_dec[:, None]
    with products_in_bf16(acts.device, in_bf16):
        pre = torch.baddbmm(w.b_enc[:, None], centred, w.enc.mT)
        indices = top_k(pre, k)
        latents = torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices).relu())
        error = acts - torch.baddbmm(w.b_dec[:, None], latents, w.dec)
        loss = error.square().sum((1, 2)) / (n_rows * d_model)
        total = loss.sum()
        if aux is not None and bool(aux.dead.any()):
            total = total + aux.coefficient * aux_loss(w, pre, error.detach(), aux.dead).sum()
    # Contiguous, because the fused Adam reads gradients as if they lay like the weights.
    enc, b_enc, dec, b_dec = (gradient.contiguous() for gradient in torch.autograd.grad(total, w[:4]))
    found = Weights(enc, b_enc, dec, b_dec, torch.zeros_like(weights.threshold))
    return Step(found, loss.detach(), (latents.detach() > 0).sum(1).to(acts.dtype))


def aux_loss(
    w: Weights,
    pre: Float[Tensor, "sae batch d_sae"],
    error: Float[Tensor, "sae batch d_model"],
    dead: Bool[Tensor, "sae d_sae"],
) -> Float[Tensor, " sae"]:
    """Return the share of the error that the best dead latents leave, 0 for SAEs without dead latents."""
    candidates = pre.masked_fill(~dead[:, None], -torch.inf)
    values, indices = torch.topk(candidates, min(w.dec.shape[2] // 2, dead.shape[1]), dim=-1, sorted=False)
    latents = torch.zeros_like(pre).scatter(-1, indices, values.relu())
    left = (error - torch.bmm(latents, w.dec)).square().sum((1, 2))
    return left / error.square().sum((1, 2)).clamp_min(1e-30) * dead.any(1)


def sparse_gradients(
    weights: Weights,
    acts: Float[Tensor, "sae batch d_model"],
    k: int,
    aux: AuxK | None,
    in_bf16: bool = False,
) -> Step:
    """Return the same gradients, touching only active latents; on a CPU.

    With `in_bf16` the dense product is in bfloat16, several times as fast on CPUs that have such units; it only
    chooses latents, whose values are computed again in float32. Latents nearly as large as the k-th may swap places.
    """
    n_saes, n_rows, d_model = acts.shape
    d_sae = weights.b_enc.shape[1]
    centred = acts - weights.b_dec[:, None]
    product = torch.bfloat16 if in_bf16 else acts.dtype
    pre = torch.baddbmm(weights.b_enc[:, None].to(product), centred.to(product), weights.enc.to(product).mT)
    indices = top_k(pre, k)
    # Latents of all SAEs in one table: latent j of SAE s is row s * d_sae + j.
    table = (indices + torch.arange(n_saes)[:, None, None] * d_sae).view(-1, k)
    bags = _Bags(table, n_saes * d_sae)
    decoder = weights.dec.reshape(-1, d_model)
    if in_bf16:
        values = bags.products(centred.view(-1, d_model), weights.enc.reshape(-1, d_model))
        values += weights.b_enc.view(-1)[table]
    else:
        values = pre.gather(-1, indices).view(-1, k)
    values.relu_()
    error = acts - weights.b_dec[:, None] - bags.decode(values, decoder).view_as(acts)
    loss = error.square().sum((1, 2)) / (n_rows * d_model)
    upstream = (error * (-2.0 / (n_rows * d_model))).view(-1, d_model)
    d_values = bags.products(upstream, decoder) * (values > 0)
    d_dec = bags.gradient_of_rows(upstream, values).view_as(weights.dec)
    d_enc = bags.gradient_of_rows(centred.view(-1, d_model), d_values).view_as(weights.enc)
    d_b_enc = torch.zeros_like(weights.b_enc).view(-1).index_add_(0, table.view(-1), d_values.view(-1))
    d_b_enc = d_b_enc.view_as(weights.b_enc)
    # Through x - b_dec every latent passes its gradient on to b_dec: summed over rows first, then one small product.
    d_b_dec = upstream.view_as(acts).sum(1) - torch.bmm(d_b_enc[:, None], weights.enc)[:, 0]
    found = Weights(d_enc, d_b_enc, d_dec, d_b_dec, torch.zeros_like(weights.threshold))
    if aux is not None and bool(aux.dead.any()):
        _add_aux(found, weights, _AuxBatch(centred, None if in_bf16 else pre, error), aux)
    fired = torch.zeros_like(weights.b_enc)
    fired.view(-1).index_add_(0, table.view(-1), (values > 0).view(-1).to(fired))
    return Step(found, loss, fired)


class _Bags:
    """Which latents are active in which rows, for weighted sums over either and their gradients.

    The same active pairs are kept twice: by row (k each) for sums over latents, and by latent, found by one counting
    sort, for sums over rows. Both sums are then `embedding_bag`, which is ten times as fast here as its own backward.
    """

    def __init__(self, table: Int[Tensor, "row k"], n_latents: int) -> None:
        self.table = table
        n_rows, k = table.shape
        self._starts = torch.arange(0, n_rows * k, k)
        self._row_of = torch.arange(n_rows).repeat_interleave(k)
        positions = np.arange(n_rows * k, dtype=np.int32)
        ends = np.arange(0, n_rows * k + 1, k, dtype=np.int32)
        by_row = csr_array((positions, table.numpy().ravel().astype(np.int32), ends), shape=(n_rows, n_latents))
        by_latent = by_row.tocsc()
        self._order = torch.from_numpy(by_latent.data)
        self._rows = torch.from_numpy(by_latent.indices)
        self._latent_starts = torch.from_numpy(by_latent.indptr[:-1].copy())

    def decode(self, values: Float[Tensor, "row k"], rows: Float[Tensor, "_ d_model"]) -> Float[Tensor, "row d_model"]:
        """Return for each row of the batch the sum of its latents' `rows` times their `values`."""
        return embedding_bag(self.table, rows, per_sample_weights=values, mode="sum")

    def products(self, batch: Float[Tensor, "row d_model"], rows: Float[Tensor, "_ d_model"]) -> Float[Tensor, "row k"]:
        """Return the product of each row of the batch with `rows` of its latents.

        With the gradient of a decoded batch this is the gradient of `values`.
        """
        found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            batch, rows, self.table.view(-1), self._starts, self._row_of, 0, -1
        )
        return found.view_as(self.table)

    def gradient_of_rows(
        self, upstream: Float[Tensor, "row d_model"], values: Float[Tensor, "row k"]
    ) -> Float[Tensor, "_ d_model"]:
        """Return the gradient of `decode` with respect to `rows`: per latent the sum of `upstream` times its values."""
        weights = values.reshape(-1)[self._order]
        return embedding_bag(self._rows, upstream, self._latent_starts, per_sample_weights=weights, mode="sum")


class _AuxBatch(NamedTuple):
    """What the AuxK term needs of the main pass."""

    centred: Float[Tensor, "sae batch d_model"]
    pre: Float[Tensor, "sae batch d_sae"] | None
    """None where it is not exact enough."""
    error: Float[Tensor, "sae batch d_model"]


def _add_aux(found: Weights, weights: Weights, batch: _AuxBatch, aux: AuxK) -> None:
    """Add the gradients of the AuxK term to `found`, computing only the columns of dead latents."""
    n_saes, d_sae, d_model = weights.dec.shape
    # Dead latents first, padded to the SAE with most of them; padding is masked.
    columns = aux.dead.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(aux.dead.sum(1).max())]
    is_dead = aux.dead.gather(1, columns)
    flat = (columns + torch.arange(n_saes)[:, None] * d_sae).view(-1)
    decoder = weights.dec.reshape(-1, d_model)[flat].view(n_saes, -1, d_model)
    encoder = weights.enc.reshape(-1, d_model)[flat].view(n_saes, -1, d_model)
    if batch.pre is None:
        candidates = torch.baddbmm(weights.b_enc.view(-1)[flat].view(n_saes, 1, -1), batch.centred, encoder.mT)
    else:
        candidates = batch.pre.gather(2, columns[:, None].expand(-1, batch.pre.shape[1], -1))
    candidates = candidates.masked_fill(~is_dead[:, None], -torch.inf)
    latents = candidates.relu()
    if latents.shape[2] > d_model // 2:
        best = top_k(candidates, d_model // 2)
        latents = torch.zeros_like(latents).scatter_(-1, best, latents.gather(-1, best))
    left = torch.bmm(latents, decoder) - batch.error
    scale = 2.0 * aux.coefficient / batch.error.square().sum((1, 2)).clamp_min(1e-30) * aux.dead.any(1)
    upstream = left * scale[:, None, None]
    d_latents = torch.bmm(upstream, decoder.mT) * (latents > 0)
    d_b_enc = d_latents.sum(1)
    found.dec.view(-1, d_model).index_add_(0, flat, torch.bmm(latents.mT, upstream).view(-1, d_model))
    found.enc.view(-1, d_model).index_add_(0, flat, torch.bmm(d_latents.mT, batch.centred).view(-1, d_model))
    found.b_enc.view(-1).index_add_(0, flat, d_b_enc.view(-1))
    found.b_dec.sub_(torch.bmm(d_b_enc[:, None], encoder)[:, 0])
