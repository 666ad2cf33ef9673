"""Folders of SAELens, against SAELens' own loaders."""

from __future__ import annotations

import pytest
import torch
from foreign_saes import D_MODEL, D_SAE, META, MODERN, PLAIN, K, W, X, close, dense_topk, write_saelens

from refusal.errors import InputError
from refusal.sae.foreign import load_any


@pytest.mark.parametrize(
    ("config", "extra"),
    [
        ({"architecture": "standard", "apply_b_dec_to_input": True}, {}),
        ({"architecture": "standard", "apply_b_dec_to_input": False}, {}),
        ({"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": False}, {}),
        ({"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}, {}),
        ({"architecture": "jumprelu", "apply_b_dec_to_input": True}, {"threshold": W.threshold}),
        ({"architecture": "jumprelu", "apply_b_dec_to_input": False}, {"threshold": W.threshold}),
    ],
)
@pytest.mark.parametrize("metadata", [META, None])
def test_a_saelens_folder_encodes_and_decodes_as_saelens_does(sae_lens, tmp_path, config, extra, metadata):
    config = {**MODERN, **config, **({} if metadata is None else {"metadata": metadata})}
    if metadata is None:
        config["sae_lens_version"] = "6.1.0"
    folder = write_saelens(tmp_path / "sae", config, PLAIN | extra)
    theirs = sae_lens.SAE.load_from_disk(folder)
    latents = theirs.encode(X).detach()
    ours = load_any(folder)
    assert torch.equal(ours.encode(X), latents)
    close(ours.decode(latents), theirs.decode(latents).detach())
    assert torch.equal(load_any(folder / "sae_weights.safetensors").encode(X), latents)


def test_a_saelens_folder_of_before_version_6_is_read_as_saelens_reads_it(sae_lens, tmp_path):
    old = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "torch.float32", "hook_point": "blocks.2.hook_resid_pre"}
    old |= {"model_name": "gpt2-small", "normalize_activations": False, "hook_point_layer": 2}
    relu = write_saelens(tmp_path / "relu", old, PLAIN | {"scaling_factor": torch.ones(D_SAE)})
    ours = load_any(relu)
    close(ours.encode(X), ((X - W.b_dec) @ W.W_enc + W.b_enc).relu())
    assert (ours.provenance.hook_name, ours.provenance.model_name) == ("blocks.2.hook_resid_pre", "gpt2-small")
    assert torch.equal(sae_lens.SAE.load_from_disk(relu).encode(X), ours.encode(X))
    topk = old | {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    ours = load_any(write_saelens(tmp_path / "topk", topk, PLAIN))
    close(ours.encode(X), dense_topk((X - W.b_dec) @ W.W_enc + W.b_enc, K))
    assert torch.equal(sae_lens.SAE.load_from_disk(tmp_path / "topk").encode(X), ours.encode(X))
    with pytest.raises(InputError, match=r"cfg\.json: activation_fn: is 'tanh-relu', allowed are 'relu' and 'topk'"):
        load_any(write_saelens(tmp_path / "tanh", old | {"activation_fn": "tanh-relu"}, PLAIN))
    with pytest.raises(InputError, match=r"normalize_activations: is 'expected_average_only_in', allowed is 'none'"):
        load_any(write_saelens(tmp_path / "scaled", old | {"normalize_activations": True}, PLAIN))
    with pytest.raises(InputError, match=r"reshape_activations: is 'hook_z', allowed is 'none'"):
        load_any(write_saelens(tmp_path / "heads", old | {"hook_point": "blocks.2.attn.hook_z"}, PLAIN))


def test_a_jumprelu_checkpoint_with_log_thresholds_is_read(tmp_path):
    config = {**MODERN, "architecture": "jumprelu", "metadata": META}
    folder = write_saelens(tmp_path, config, PLAIN | {"log_threshold": W.threshold.log()})
    pre = (X - W.b_dec) @ W.W_enc + W.b_enc
    close(load_any(folder).encode(X), pre.relu() * (pre > W.threshold))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_a_training_checkpoint_is_refused_with_advice_that_works(sae_lens, tmp_path, kind):
    config = {**MODERN, "architecture": kind, "k": K, "rescale_acts_by_decoder_norm": False, "metadata": META}
    if kind.startswith("matryoshka"):
        config["matryoshka_widths"] = [4, D_SAE]
    folder = write_saelens(tmp_path / "run", config, PLAIN | {"topk_threshold": torch.tensor(0.4)})
    with pytest.raises(InputError) as error:
        load_any(folder)
    assert f"architecture: {kind!r} is not supported; allowed are jumprelu, standard, topk" in str(error.value)
    assert "TrainingSAE.load_from_disk(FOLDER).save_inference_model(OTHER_FOLDER)" in str(error.value)
    sae_lens.TrainingSAE.load_from_disk(folder).save_inference_model(tmp_path / "done")
    close(load_any(tmp_path / "done").encode(X), sae_lens.SAE.load_from_disk(tmp_path / "done").encode(X).detach())


@pytest.mark.parametrize("kind", ["gated", "transcoder", "skip_transcoder", "abstopk"])
def test_other_architectures_of_saelens_are_refused_by_name(tmp_path, kind):
    folder = write_saelens(tmp_path, {**MODERN, "architecture": kind, "metadata": META}, PLAIN)
    with pytest.raises(InputError, match=f"architecture: '{kind}' is not supported; allowed are jumprelu, standard, t"):
        load_any(folder)
