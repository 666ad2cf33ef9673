"""Gemma Scope 1 and 2: files made by hand, against the formula and SAELens' converter."""

from __future__ import annotations

import pytest
import torch
from foreign_saes import (
    D_MODEL,
    GEMMA_2_CONFIG,
    GEMMA_2_FOLDER,
    GEMMA_FOLDER,
    W,
    X,
    check,
    close,
    jumprelu_latents,
    through_saelens,
    write_gemma,
    write_gemma_2,
)
from safetensors.torch import save_file

from refusal.errors import InputError
from refusal.sae.foreign import find_format, load_any


def test_gemma_scope_is_jumprelu_that_does_not_subtract_b_dec(tmp_path):
    folder = write_gemma(tmp_path / GEMMA_FOLDER)
    check(folder, jumprelu_latents())
    check(folder / "params.npz", jumprelu_latents())
    found = load_any(folder)
    assert found.provenance.hook_name == "blocks.12.hook_resid_post"
    assert find_format(folder).files == (folder / "params.npz",)


def test_gemma_scope_computes_in_float32_however_it_is_stored(tmp_path):
    folder = write_gemma_2(tmp_path / GEMMA_2_FOLDER)
    save_file({name.lower(): tensor.bfloat16() for name, tensor in W._asdict().items()}, folder / "params.safetensors")
    assert load_any(folder).dtype == torch.float32


def test_gemma_scope_2_is_jumprelu_that_does_not_subtract_b_dec(tmp_path):
    folder = write_gemma_2(tmp_path / GEMMA_2_FOLDER)
    check(folder, jumprelu_latents())
    check(folder / "params.safetensors", jumprelu_latents())
    provenance = load_any(folder).provenance
    assert (provenance.hook_name, provenance.model_name) == ("blocks.13.hook_resid_post", "google/gemma-3-1b-it")
    assert load_any(write_gemma_2(tmp_path / "other" / GEMMA_2_FOLDER, None)).provenance.hook_name == (
        "blocks.13.hook_resid_post"
    )


@pytest.mark.parametrize(
    ("path", "hook_name", "hf_hook_name"),
    [
        ("gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_7", "blocks.3.hook_mlp_out", "model.layers.3."),
        ("models--google--gemma-scope-2b-pt-att/snapshots/0a1b/layer_3/width_16k/average_l0_7", None, "o_proj.input"),
        ("gemma-scope-2-4b-it/attn_out_all/layer_3_width_16k_l0_small", None, "model.layers.3.self_attn.o_proj.input"),
        ("mine/somewhere", None, None),
    ],
)
def test_what_a_path_of_gemma_scope_says_is_kept(tmp_path, path, hook_name, hf_hook_name):
    provenance = load_any(write_gemma(tmp_path / path)).provenance
    assert provenance.hook_name == hook_name
    assert provenance.hf_hook_name == hf_hook_name or hf_hook_name in provenance.hf_hook_name


@pytest.mark.parametrize(
    ("path", "config", "extra", "message"),
    [
        ("gemma-scope-2b-pt-transcoders/layer_1/a/b", {}, {}, "architecture: found a transcoder, allowed are SAEs"),
        (GEMMA_2_FOLDER, {}, {"affine_skip_connection": torch.zeros(D_MODEL, D_MODEL)}, "found a transcoder"),
        (GEMMA_2_FOLDER, {"hf_hook_point_out": "model.layers.13.mlp.output"}, {}, "found a transcoder"),
        (GEMMA_2_FOLDER, {"type": "crosscoder"}, {}, "found a transcoder"),
        (GEMMA_2_FOLDER, {"architecture": "topk"}, {}, "architecture: found 'topk', allowed is 'jump_relu'"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", {}, {}, "found an SAE of the embedding"),
    ],
)
def test_what_is_no_sae_of_a_layer_in_gemma_scope_is_refused(tmp_path, path, config, extra, message):
    folder = write_gemma_2(tmp_path / path, {**GEMMA_2_CONFIG, **config}, **extra)
    with pytest.raises(InputError, match=message):
        load_any(folder)


@pytest.mark.parametrize(
    ("write", "loader", "path"),
    [
        (write_gemma, "gemma_2_sae_huggingface_loader", GEMMA_FOLDER),
        (write_gemma_2, "gemma_3_sae_huggingface_loader", GEMMA_2_FOLDER),
    ],
)
def test_gemma_scope_equals_what_saelens_makes_of_it(sae_lens, monkeypatch, tmp_path, write, loader, path):
    write(tmp_path / path)
    repo, folder = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
    theirs = through_saelens(sae_lens, monkeypatch, tmp_path, loader, repo, folder)
    ours = load_any(tmp_path / path)
    close(ours.encode(X), theirs.encode(X).detach())
    close(ours(X).reconstruction, theirs(X).detach())
    assert ours.provenance.hook_name == theirs.cfg.metadata.hook_name
