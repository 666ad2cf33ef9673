"""An SAE of any known library as one of ours: the table of readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from refusal.sae.base import SparseAutoencoder
from refusal.sae.foreign.dictionary_learning import read_dictionary
from refusal.sae.foreign.found import FoundSae, SaeFormat, find_format
from refusal.sae.foreign.gemma_scope import read_gemma_scope
from refusal.sae.foreign.sparsify import read_sparsify
from refusal.sae.formats import load

_READERS: dict[SaeFormat, Callable[[FoundSae], SparseAutoencoder]] = {
    SaeFormat.GEMMA_SCOPE: read_gemma_scope,
    SaeFormat.GEMMA_SCOPE_2: read_gemma_scope,
    SaeFormat.DICTIONARY_LEARNING: read_dictionary,
    SaeFormat.SPARSIFY: read_sparsify,
}


def load_any(path: str | Path, device: str | torch.device = "cpu") -> SparseAutoencoder:
    """Return the SAE at a path, whichever of the known libraries wrote it.

    What the library's own class computes is what `encode` and `decode` of the result compute:

    * SAELens: see `refusal.sae.formats.load`.
    * Gemma Scope 1 and 2: JumpReLU, b_dec is not subtracted; float32.
    * dictionary_learning: `AutoEncoder` is ReLU; `AutoEncoderNew` is ReLU without subtraction of b_dec;
      `AutoEncoderTopK` is TopK (its threshold is not used by default, nor here); `BatchTopKSAE` and
      `MatryoshkaBatchTopKSAE` are JumpReLU with one threshold for all latents, their default outside of training;
      `JumpReluAutoEncoder` is JumpReLU without subtraction of b_dec.
    * sparsify: TopK, b_dec is always subtracted.

    Decoder rows stay as they are, also where they are not of unit norm (`AutoEncoder` and `AutoEncoderNew` after the
    April update; sparsify without `normalize_decoder`): no class above ranks or thresholds by their norm. What
    `AutoEncoder.from_pretrained` adds by default, a latent times the norm of its row, is not done.

    Args:
        path: As for `find_format`.
        device: Where the weights go.

    Raises:
        ArtefactError: A file is missing, cut off or damaged.
        InputError: Nothing known lies there, or an architecture or option is not supported, or weights and
            configuration disagree.
    """
    found = find_format(path)
    if found.format is SaeFormat.SAELENS:
        return load(found.weights.parent, device)
    return _READERS[found.format](found).to(device)
