"""SAEs in the files of other libraries, of the same random weights, and SAELens to compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from refusal import sae as saes
from refusal.sae.foreign import SaeFormat, load_any

D_MODEL, D_SAE, K = 6, 20, 3


class Weights(NamedTuple):
    """Random weights, in the orientation of our names; decoder rows have norms from 0.5 to 2."""

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    threshold: torch.Tensor


def make_weights(seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=generator), dim=-1)
    return Weights(
        torch.randn(D_MODEL, D_SAE, generator=generator),
        torch.randn(D_SAE, generator=generator) * 0.3,
        W_dec * torch.linspace(0.5, 2, D_SAE)[:, None],
        torch.randn(D_MODEL, generator=generator),
        torch.rand(D_SAE, generator=generator),
    )


def make_acts(seed: int = 1) -> torch.Tensor:
    return torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(seed)) * 2


W, X = make_weights(), make_acts()


def dense_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    kept = pre.relu().topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def check(path: Path, latents: torch.Tensor) -> None:
    """Hold `load_any` against latents by the library's formula, and its copy, as the stage makes it, against both."""
    sae = load_any(path)
    close(sae.encode(X), latents)
    close(sae.decode(latents), latents @ W.W_dec + W.b_dec)
    assert 0 < float((latents > 0).float().mean()) < 1, "else the test says nothing"
    copy = saes.load(sae.save(path.parent / "copy" if path.is_file() else path / "copy"))
    assert torch.equal(copy.encode(X), sae.encode(X))
    assert torch.equal(copy(X).reconstruction, sae(X).reconstruction)


PLAIN = {"W_enc": W.W_enc, "b_enc": W.b_enc, "W_dec": W.W_dec, "b_dec": W.b_dec}
MODERN = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}
META = {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2"}


def write_saelens(folder: Path, config: object, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


GEMMA_FOLDER = "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
GEMMA_2_FOLDER = "google/gemma-scope-2-1b-it/resid_post/layer_13_width_16k_l0_small"
GEMMA_2_CONFIG = {
    "architecture": "jump_relu",
    "model_name": "google/gemma-3-1b-it",
    "hf_hook_point_in": "model.layers.13.output",
    "hf_hook_point_out": "model.layers.13.output",
    "width": D_SAE,
    "l0": 20,
    "type": "sae",
    "affine_connection": False,
}


def jumprelu_latents() -> torch.Tensor:
    pre = X @ W.W_enc + W.b_enc
    return pre.relu() * (pre > W.threshold)


def write_gemma(folder: Path, **extra: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in (W._asdict() | extra).items()})
    return folder


def write_gemma_2(folder: Path, config: object = GEMMA_2_CONFIG, **extra: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    tensors = {name.lower(): tensor for name, tensor in W._asdict().items()} | extra
    save_file(tensors, folder / "params.safetensors")
    return folder


LINEAR = {"encoder.weight": W.W_enc.T, "encoder.bias": W.b_enc, "decoder.weight": W.W_dec.T}


def write_dictionary(folder: Path, name: str, state: object, **trainer: object) -> Path:
    folder.mkdir(parents=True)
    known = {"dict_class": name, "activation_dim": D_MODEL, "dict_size": D_SAE, "k": K, "layer": 8, "steps": 10}
    known |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_8", **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": known, "buffer": {"ctx_len": 128}}))
    torch.save(state, folder / "ae.pt")
    return folder


SPARSIFY_CONFIG = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": D_SAE,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D_MODEL,
}


def write_sparsify(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(SPARSIFY_CONFIG | config))
    tensors = {"encoder.weight": W.W_enc.T.contiguous(), "encoder.bias": W.b_enc, "W_dec": W.W_dec, "b_dec": W.b_dec}
    save_file(tensors, folder / "sae.safetensors")
    return folder


def write_each(root: Path) -> dict[SaeFormat, Path]:
    """Return one SAE in each format."""
    return {
        SaeFormat.SAELENS: write_saelens(root / "s", {**MODERN, "architecture": "standard"}, PLAIN),
        SaeFormat.GEMMA_SCOPE: write_gemma(root / "g"),
        SaeFormat.GEMMA_SCOPE_2: write_gemma_2(root / "h"),
        SaeFormat.DICTIONARY_LEARNING: write_dictionary(root / "d", "AutoEncoder", {"bias": W.b_dec, **LINEAR}),
        SaeFormat.SPARSIFY: write_sparsify(root / "p"),
    }


def through_saelens(sae_lens, monkeypatch, root: Path, loader: str, repo: str, folder: str):
    """Return the SAE that SAELens makes of a repository of the hub, read from a folder instead."""
    loaders = sae_lens.loading.pretrained_sae_loaders

    def local(repo_id: str, filename: str, subfolder: str | None = None, **_: object) -> str:
        return str(root / repo_id / (subfolder or "") / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", local)
    monkeypatch.setattr(
        loaders, "get_safetensors_tensor_shapes", lambda *_: {"w_enc": [D_MODEL, D_SAE], "w_dec": [D_SAE, D_MODEL]}
    )
    config, state, _ = getattr(loaders, loader)(repo, folder)
    config = loaders.handle_config_defaulting(config) | {"d_in": D_MODEL, "d_sae": D_SAE}
    theirs = sae_lens.SAE.from_dict(config)
    theirs.load_state_dict(state)
    return theirs
