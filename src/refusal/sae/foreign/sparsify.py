"""SAEs of sparsify: TopK that always subtracts b_dec, in a folder named after the module that it reads."""

from __future__ import annotations

import re

from refusal.errors import InputError
from refusal.sae.base import SparseAutoencoder
from refusal.sae.foreign.found import FoundSae
from refusal.sae.foreign.shared import check_agreement, errors_naming, provenance_of, renamed, whole_number
from refusal.sae.topk import TopKSae
from refusal.sae.weight_files import read_config, read_tensors

_TOPK_ONLY = {
    "activation": "topk",
    "transcode": False,
    "skip_connection": False,
    "signed": False,
    "embed_skip": False,
    "gram_lookup": False,
}
"""Options of sparsify -> the value that TopK SAEs have, which is also what a missing option means."""
_HOOKPOINT = re.compile(r"(?:.+\.)?(?:layers|h|blocks)\.\d+(?:\..+)?|embed_tokens")
"""Names of modules, after which sparsify names folders."""


def read_sparsify(found: FoundSae) -> SparseAutoencoder:
    """Return the SAE of sparsify: the k largest of ReLU(pre), pre = (x - b_dec) W_enc + b_enc."""
    config = read_config(found.config)
    for key, allowed in _TOPK_ONLY.items():
        if config.get(key, allowed) != allowed:
            raise InputError(
                f"{found.config}: {key}: found {config[key]!r}, allowed is {allowed!r}; take a TopK SAE that reads and "
                "writes one place"
            )
    folder = found.weights.parent
    hookpoint = folder.name if _HOOKPOINT.fullmatch(folder.name) else None
    run = folder.parent / "config.json"
    model = read_config(run).get("model") if run.is_file() else None
    provenance = provenance_of(model, hookpoint, None)
    k = whole_number(f"{found.config}: k", config.get("k"))
    tensors = read_tensors(found.weights)
    with errors_naming(found):
        sae = TopKSae(renamed(tensors), k=k, provenance=provenance)
    n_latents = config.get("num_latents") or None  # 0: expansion_factor counts
    check_agreement(found, ("d_in", config.get("d_in"), sae.d_in), ("num_latents", n_latents, sae.d_sae))
    return sae
