"""TopK SAEs: of all pre-activations of a row the k largest stay, the rest are 0; what stays passes a ReLU.

L0 is k by construction (less where one of the k is not positive), so nothing has to be tuned to make SAEs comparable.
Source: Gao et al. 2406.04093, section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.errors import InputError
from refusal.sae.base import Provenance, Scalar, SparseAutoencoder, register


@register("topk")
class TopKSae(SparseAutoencoder):
    """latents = ReLU(TopK_k((x - b_dec) W_enc + b_enc)).

    With `ranks_by_decoder_norm` (SAELens' `rescale_acts_by_decoder_norm`) pre-activations are multiplied by the norms
    of the decoder rows before they are ranked, and latents divided by them before they are decoded. Where decoder rows
    have unit norm, as in all SAEs trained here, both are the same.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        k: int,
        ranks_by_decoder_norm: bool = False,
        provenance: Provenance | None = None,
        subtracts_b_dec: bool = True,
    ) -> None:
        """Take the weights as they are; `k` is the number of latents per row, in [1, d_sae].

        Raises:
            InputError: The weights do not fit together, or `k` is out of range.
        """
        super().__init__(tensors, provenance=provenance, subtracts_b_dec=subtracts_b_dec)
        if not 1 <= k <= self.d_sae:
            raise InputError(f"SAE: k is {k}, allowed are 1 to d_sae = {self.d_sae}")
        self.k = k
        self.ranks_by_decoder_norm = ranks_by_decoder_norm

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any], provenance: Provenance) -> Self:
        """Return the SAE of weights and the content of a `cfg.json`.

        Raises:
            InputError: `k` is missing or out of range, or the weights do not fit together.
        """
        if not isinstance(config.get("k"), int):
            raise InputError(f"cfg.json: k: is {config.get('k')!r}, allowed are whole numbers from 1 to d_sae")
        return cls(
            tensors,
            k=config["k"],
            ranks_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
            provenance=provenance,
            subtracts_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        )

    def activate(self, pre: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_sae"]:
        """Return ReLU of the k largest pre-activations of each row, 0 elsewhere."""
        if self.ranks_by_decoder_norm:
            pre = pre * self.W_dec.norm(dim=-1)
        values, indices = torch.topk(pre, self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, indices, values.relu())

    def decode(self, latents: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_model"]:
        """Return the reconstruction of activations from latents."""
        if self.ranks_by_decoder_norm:
            latents = latents * (1 / self.W_dec.norm(dim=-1))
        return super().decode(latents)

    def options(self) -> dict[str, Scalar]:
        """Return `k` and SAELens' name for `ranks_by_decoder_norm`."""
        return {"k": self.k, "rescale_acts_by_decoder_norm": self.ranks_by_decoder_norm}
