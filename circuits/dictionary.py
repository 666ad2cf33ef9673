"""The units a site is seen through: the latents of an SAE, or the neurons of an MLP as they are.

Everything after this module asks a dictionary, and does not know which of the two it is. A dictionary is linear in its
decoder: x = sum over units of f W_dec[f] + what it does not reconstruct. For neurons f = x, W_dec is the identity and
nothing is left over.
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal.sae.base import SparseAutoencoder


class Dictionary(Protocol):
    """Units of a site; `width` is d_model, or d_mlp for neurons."""

    def encode(self, acts: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch unit"]:
        """Return the activation of every unit."""

    def project(self, gradient: Float[Tensor, "prompt width"]) -> Float[Tensor, "prompt unit"]:
        """Return <gradient, W_dec[f]> for every unit."""

    def decode(self, change: Float[Tensor, "prompt unit"]) -> Float[Tensor, "prompt width"]:
        """Return sum over units of change_f W_dec[f]."""

    def rows(self, units: Int[Tensor, " node"] | Bool[Tensor, " unit"]) -> Float[Tensor, "node width"]:
        """Return W_dec of some units."""

    def read(self, acts: Float[Tensor, "node batch width"], units: Int[Tensor, " node"]) -> Float[Tensor, "node batch"]:
        """Return unit v in run v, differentiable, with the choice of active units frozen to that of run 0."""


class SAEUnits:
    """The latents of an SAE."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._sae = sae
        self._decoder = sae.W_dec.detach()

    def encode(self, acts: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch unit"]:
        """Return the latents."""
        with torch.no_grad():
            return self._sae.encode(acts)

    def project(self, gradient: Float[Tensor, "prompt width"]) -> Float[Tensor, "prompt unit"]:
        """Return <gradient, W_dec[f]>."""
        return gradient @ self._decoder.T

    def decode(self, change: Float[Tensor, "prompt unit"]) -> Float[Tensor, "prompt width"]:
        """Return the decoded change; biases cancel."""
        return change @ self._decoder

    def rows(self, units: Int[Tensor, " node"] | Bool[Tensor, " unit"]) -> Float[Tensor, "node width"]:
        """Return rows of the decoder."""
        return self._decoder[units]

    def read(self, acts: Float[Tensor, "node batch width"], units: Int[Tensor, " node"]) -> Float[Tensor, "node batch"]:
        """Return the pre-activation of latent v in run v, zero where the latent is off in run 0."""
        sae = self._sae
        pre = torch.einsum("vbd,dv->vb", acts.float() - sae.b_dec, sae.W_enc[:, units]) + sae.b_enc[units][:, None]
        return pre * (self.encode(acts[0].float().detach())[:, units].T > 0)


class NeuronUnits:
    """The neurons of an MLP, each a unit of its own."""

    def __init__(self, width: int) -> None:
        self._width = width

    def encode(self, acts: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch unit"]:
        """Return the neurons as they are."""
        return acts

    def project(self, gradient: Float[Tensor, "prompt width"]) -> Float[Tensor, "prompt unit"]:
        """Return the gradient as it is."""
        return gradient

    def decode(self, change: Float[Tensor, "prompt unit"]) -> Float[Tensor, "prompt width"]:
        """Return the change as it is."""
        return change

    def rows(self, units: Int[Tensor, " node"] | Bool[Tensor, " unit"]) -> Float[Tensor, "node width"]:
        """Return unit vectors."""
        index = torch.nonzero(units).ravel() if units.dtype == torch.bool else units
        return torch.nn.functional.one_hot(index, self._width).float()

    def read(self, acts: Float[Tensor, "node batch width"], units: Int[Tensor, " node"]) -> Float[Tensor, "node batch"]:
        """Return neuron v in run v."""
        return acts.float().gather(2, units[:, None, None].expand(-1, acts.shape[1], 1)).squeeze(2)
