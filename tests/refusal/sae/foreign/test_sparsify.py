"""sparsify: folders made by hand, against the library's formula."""

from __future__ import annotations

import json

import pytest
import torch
from foreign_saes import K, W, X, check, dense_topk, write_sparsify
from safetensors.torch import save_file

from refusal.errors import InputError
from refusal.sae.foreign import load_any


@pytest.mark.parametrize("normalize_decoder", [True, False])
def test_sparsify_is_topk_that_always_subtracts_b_dec(tmp_path, normalize_decoder):
    folder = write_sparsify(tmp_path / "run" / "layers.4", normalize_decoder=normalize_decoder)
    check(folder, dense_topk(torch.nn.functional.linear(X - W.b_dec, W.W_enc.T, W.b_enc), K))
    assert load_any(folder / "sae.safetensors").provenance.hook_name == "blocks.4.hook_resid_post"


def test_sparsify_is_known_by_the_names_of_folders_and_by_the_configuration_of_the_run(tmp_path):
    folder = write_sparsify(tmp_path / "run" / "layers.4.mlp", num_latents=0)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    provenance = load_any(folder).provenance
    assert (provenance.model_name, provenance.hook_name) == ("EleutherAI/pythia-160m", "blocks.4.hook_mlp_out")
    assert load_any(write_sparsify(tmp_path / "mine")).provenance.hook_name is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "groupmax"}, r"cfg\.json: activation: found 'groupmax', allowed is 'topk'"),
        ({"transcode": True}, r"cfg\.json: transcode: found True, allowed is False"),
        ({"skip_connection": True}, r"cfg\.json: skip_connection: found True, allowed is False"),
        ({"signed": True}, r"cfg\.json: signed: found True, allowed is False"),
        ({"k": "many"}, r"cfg\.json: k: found 'many', allowed are whole numbers from 1 to d_sae"),
        ({"k": 21}, r"sae\.safetensors: SAE: k is 21, allowed are 1 to d_sae = 20"),
        ({"d_in": 7}, r"cfg\.json: d_in: found 7, but the weights have 6"),
        ({"num_latents": 7}, r"cfg\.json: num_latents: found 7, but the weights have 20"),
    ],
)
def test_options_of_sparsify_that_change_the_meaning_are_refused(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        load_any(write_sparsify(tmp_path / "layers.4", **config))


def test_sparsify_in_half_precision_computes_in_it(tmp_path):
    folder = write_sparsify(tmp_path / "layers.4")
    tensors = {"encoder.weight": W.W_enc.T, "encoder.bias": W.b_enc, "W_dec": W.W_dec, "b_dec": W.b_dec}
    save_file({name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    x = X.bfloat16()
    pre = torch.nn.functional.linear(x - W.b_dec.bfloat16(), W.W_enc.T.bfloat16(), W.b_enc.bfloat16())
    found = load_any(folder).encode(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, dense_topk(pre, K), rtol=0.02, atol=0.02)
