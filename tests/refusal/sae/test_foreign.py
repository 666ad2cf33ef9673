"""SAEs as other libraries write them: each format made by hand, against the library's formula and SAELens' loaders."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from refusal import sae as saes
from refusal.errors import ArtefactError, InputError, RefusalError
from refusal.sae.foreign import SaeFormat, find_format, load_any

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


def check(path: Path, latents: torch.Tensor, W_dec: torch.Tensor = W.W_dec) -> None:
    """Hold `load_any` against latents by the library's formula, and its copy, as the stage makes it, against both."""
    sae = load_any(path)
    close(sae.encode(X), latents)
    close(sae.decode(latents), latents @ W_dec + W.b_dec)
    assert 0 < float((latents > 0).float().mean()) < 1, "else the test says nothing"
    copy = saes.load(sae.save(path.parent / "copy" if path.is_file() else path / "copy"))
    assert torch.equal(copy.encode(X), sae.encode(X))
    assert torch.equal(copy(X).reconstruction, sae(X).reconstruction)


def named(name: str, folder: Path, config: object, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / name).write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def sae_lens():
    """Return SAELens, whose import warns of its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens

    return sae_lens


# SAELens -------------------------------------------------------------------------------------------------------------

PLAIN = {"W_enc": W.W_enc, "b_enc": W.b_enc, "W_dec": W.W_dec, "b_dec": W.b_dec}
MODERN = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}
META = {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2"}


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
    folder = named("cfg.json", tmp_path / "sae", config, PLAIN | extra)
    theirs = sae_lens.SAE.load_from_disk(folder)
    latents = theirs.encode(X).detach()
    ours = load_any(folder)
    assert torch.equal(ours.encode(X), latents)
    close(ours.decode(latents), theirs.decode(latents).detach())
    assert torch.equal(load_any(folder / "sae_weights.safetensors").encode(X), latents)


def test_a_saelens_folder_of_before_version_6_is_read_as_saelens_reads_it(sae_lens, tmp_path):
    old = {"d_in": D_MODEL, "d_sae": D_SAE, "dtype": "torch.float32", "hook_point": "blocks.2.hook_resid_pre"}
    old |= {"model_name": "gpt2-small", "normalize_activations": False, "hook_point_layer": 2}
    relu = named("cfg.json", tmp_path / "relu", old, PLAIN | {"scaling_factor": torch.ones(D_SAE)})
    ours = load_any(relu)
    close(ours.encode(X), ((X - W.b_dec) @ W.W_enc + W.b_enc).relu())
    assert (ours.provenance.hook_name, ours.provenance.model_name) == ("blocks.2.hook_resid_pre", "gpt2-small")
    assert torch.equal(sae_lens.SAE.load_from_disk(relu).encode(X), ours.encode(X))
    topk = old | {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    ours = load_any(named("cfg.json", tmp_path / "topk", topk, PLAIN))
    close(ours.encode(X), dense_topk((X - W.b_dec) @ W.W_enc + W.b_enc, K))
    assert torch.equal(sae_lens.SAE.load_from_disk(tmp_path / "topk").encode(X), ours.encode(X))
    with pytest.raises(InputError, match=r"cfg\.json: activation_fn: is 'tanh-relu', allowed are 'relu' and 'topk'"):
        load_any(named("cfg.json", tmp_path / "tanh", old | {"activation_fn": "tanh-relu"}, PLAIN))
    with pytest.raises(InputError, match=r"normalize_activations: is 'expected_average_only_in', allowed is 'none'"):
        load_any(named("cfg.json", tmp_path / "scaled", old | {"normalize_activations": True}, PLAIN))
    with pytest.raises(InputError, match=r"reshape_activations: is 'hook_z', allowed is 'none'"):
        load_any(named("cfg.json", tmp_path / "heads", old | {"hook_point": "blocks.2.attn.hook_z"}, PLAIN))


def test_a_jumprelu_checkpoint_with_log_thresholds_is_read(tmp_path):
    config = {**MODERN, "architecture": "jumprelu", "metadata": META}
    folder = named("cfg.json", tmp_path, config, PLAIN | {"log_threshold": W.threshold.log()})
    pre = (X - W.b_dec) @ W.W_enc + W.b_enc
    close(load_any(folder).encode(X), pre.relu() * (pre > W.threshold))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_a_training_checkpoint_is_refused_with_advice_that_works(sae_lens, tmp_path, kind):
    config = {**MODERN, "architecture": kind, "k": K, "rescale_acts_by_decoder_norm": False, "metadata": META}
    if kind.startswith("matryoshka"):
        config["matryoshka_widths"] = [4, D_SAE]
    folder = named("cfg.json", tmp_path / "run", config, PLAIN | {"topk_threshold": torch.tensor(0.4)})
    with pytest.raises(InputError) as error:
        load_any(folder)
    assert f"architecture: {kind!r} is not supported; allowed are jumprelu, standard, topk" in str(error.value)
    assert "TrainingSAE.load_from_disk(FOLDER).save_inference_model(OTHER_FOLDER)" in str(error.value)
    sae_lens.TrainingSAE.load_from_disk(folder).save_inference_model(tmp_path / "done")
    close(load_any(tmp_path / "done").encode(X), sae_lens.SAE.load_from_disk(tmp_path / "done").encode(X).detach())


@pytest.mark.parametrize("kind", ["gated", "transcoder", "skip_transcoder", "abstopk"])
def test_other_architectures_of_saelens_are_refused_by_name(tmp_path, kind):
    folder = named("cfg.json", tmp_path, {**MODERN, "architecture": kind, "metadata": META}, PLAIN)
    with pytest.raises(InputError, match=f"architecture: '{kind}' is not supported; allowed are jumprelu, standard, t"):
        load_any(folder)


# Gemma Scope ---------------------------------------------------------------------------------------------------------

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


def gemma_latents() -> torch.Tensor:
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


def test_gemma_scope_is_jumprelu_that_does_not_subtract_b_dec(tmp_path):
    folder = write_gemma(tmp_path / GEMMA_FOLDER)
    check(folder, gemma_latents())
    check(folder / "params.npz", gemma_latents())
    found = load_any(folder)
    assert found.provenance.hook_name == "blocks.12.hook_resid_post"
    assert find_format(folder).files == (folder / "params.npz",)


def test_gemma_scope_computes_in_float32_however_it_is_stored(tmp_path):
    folder = write_gemma_2(tmp_path / GEMMA_2_FOLDER)
    save_file({name.lower(): tensor.bfloat16() for name, tensor in W._asdict().items()}, folder / "params.safetensors")
    assert load_any(folder).dtype == torch.float32


def test_gemma_scope_2_is_jumprelu_that_does_not_subtract_b_dec(tmp_path):
    folder = write_gemma_2(tmp_path / GEMMA_2_FOLDER)
    check(folder, gemma_latents())
    check(folder / "params.safetensors", gemma_latents())
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


# dictionary_learning -------------------------------------------------------------------------------------------------

LINEAR = {"encoder.weight": W.W_enc.T, "encoder.bias": W.b_enc, "decoder.weight": W.W_dec.T}
TOPK_STATE = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7), "b_dec": W.b_dec, **LINEAR}
MATRYOSHKA_STATE = {**PLAIN, "k": TOPK_STATE["k"], "threshold": torch.tensor(0.7), "group_sizes": torch.tensor([4, 16])}
JUMP_STATE = {**PLAIN, "threshold": W.threshold}
PRE = (X - W.b_dec) @ W.W_enc + W.b_enc
DICTIONARIES = {
    "AutoEncoder": ({"bias": W.b_dec, **LINEAR}, PRE.relu()),
    "AutoEncoderNew": ({"decoder.bias": W.b_dec, **LINEAR}, (X @ W.W_enc + W.b_enc).relu()),
    "AutoEncoderTopK": (TOPK_STATE, dense_topk(PRE, K)),
    "BatchTopKSAE": (TOPK_STATE, PRE.relu() * (PRE.relu() > 0.7)),
    "MatryoshkaBatchTopKSAE": (MATRYOSHKA_STATE, PRE.relu() * (PRE.relu() > 0.7)),
    "JumpReluAutoEncoder": (JUMP_STATE, gemma_latents()),
}


def write_dictionary(folder: Path, name: str, state: object, **trainer: object) -> Path:
    folder.mkdir(parents=True)
    known = {"dict_class": name, "activation_dim": D_MODEL, "dict_size": D_SAE, "k": K, "layer": 8, "steps": 10}
    known |= {"lm_name": "EleutherAI/pythia-70m-deduped", "submodule_name": "resid_post_layer_8", **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": known, "buffer": {"ctx_len": 128}}))
    torch.save(state, folder / "ae.pt")
    return folder


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionaries_encode_and_decode_by_their_classes(tmp_path, name):
    state, latents = DICTIONARIES[name]
    folder = write_dictionary(tmp_path / "trainer_0", name, state)
    check(folder, latents)
    check(folder / "ae.pt", latents)
    provenance = load_any(folder).provenance
    assert provenance.hook_name == "blocks.8.hook_resid_post"
    assert provenance.model_name == "EleutherAI/pythia-70m-deduped"


def test_a_checkpoint_of_a_dictionary_takes_the_configuration_above_it(tmp_path):
    folder = write_dictionary(tmp_path / "trainer_0", "AutoEncoderTopK", TOPK_STATE)
    (folder / "checkpoints").mkdir()
    shutil.move(folder / "ae.pt", folder / "checkpoints" / "ae_500.pt")
    check(folder / "checkpoints" / "ae_500.pt", DICTIONARIES["AutoEncoderTopK"][1])


def test_k_of_the_weights_counts_before_that_of_the_trainer(tmp_path):
    state = {key: tensor for key, tensor in TOPK_STATE.items() if key != "k"}
    older = write_dictionary(tmp_path / "old", "AutoEncoderTopK", state, k=2)
    close(load_any(older).encode(X), dense_topk(PRE, 2))
    newer = write_dictionary(tmp_path / "new", "AutoEncoderTopK", TOPK_STATE, k=2)
    close(load_any(newer).encode(X), dense_topk(PRE, K))
    with pytest.raises(InputError, match=r"ae\.pt: k: found None, allowed are whole numbers from 1 to d_sae"):
        load_any(write_dictionary(tmp_path / "none", "AutoEncoderTopK", state, k=None))


@pytest.mark.parametrize(
    ("name", "state", "trainer", "message"),
    [
        (
            "BatchTopKSAE",
            TOPK_STATE | {"threshold": torch.tensor(-1.0)},
            {},
            r"ae\.pt: threshold: found -1, which means that it was never set; allowed is 0 or more; take a checkpoint",
        ),
        ("GatedAutoEncoder", TOPK_STATE, {}, r"config\.json: trainer\.dict_class: found 'GatedAutoEncoder', allowed a"),
        (["AutoEncoder"], TOPK_STATE, {}, r"dict_class: found \['AutoEncoder'\], allowed are AutoEncoder, AutoEncoder"),
        ("AutoEncoderTopK", TOPK_STATE, {"dict_size": 21}, r"trainer\.dict_size: found 21, but the weights have 20"),
        ("AutoEncoderTopK", TOPK_STATE | {"W_skip": W.W_dec}, {}, r"ae\.pt: SAE weights: found .*W_skip.*allowed are"),
        ("AutoEncoder", {"bias": W.b_dec}, {}, r"ae\.pt: SAE weights: found \['b_dec'\], allowed are exactly"),
        ("JumpReluAutoEncoder", PLAIN, {}, r"ae\.pt: SAE weights: found .*allowed are exactly .*'threshold'"),
        (
            "AutoEncoder",
            {"bias": W.b_dec, **LINEAR, "encoder.weight": torch.full((D_SAE, D_MODEL), torch.nan)},
            {},
            r"ae\.pt: SAE weights: W_enc holds values that are not finite",
        ),
        (
            "AutoEncoder",
            {"bias": W.b_dec, **LINEAR, "encoder.weight": torch.ones(D_SAE, D_MODEL, dtype=torch.int8)},
            {},
            r"ae\.pt: W_enc: found int8, allowed are float16, bfloat16, float32, float64",
        ),
    ],
)
def test_dictionaries_that_cannot_be_used_are_told(tmp_path, name, state, trainer, message):
    folder = write_dictionary(tmp_path / "trainer_0", name, state, **trainer)
    with pytest.raises(InputError, match=message):
        load_any(folder)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    folder = write_dictionary(tmp_path / "trainer_0", "AutoEncoder", {})
    trace = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    for write in (torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))):
        write({"bias": Evil()}, folder / "ae.pt")
        with pytest.raises(ArtefactError, match=r"ae\.pt: not readable: .*allowed are tensors alone"):
            load_any(folder)
    assert not trace.exists()


# sparsify ------------------------------------------------------------------------------------------------------------

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


# SAELens' own converters ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", [name for name in DICTIONARIES if name != "AutoEncoderNew"])
def test_dictionaries_equal_what_saelens_makes_of_them(sae_lens, monkeypatch, tmp_path, name):
    folder = write_dictionary(tmp_path / "a" / "b" / "trainer_0", name, DICTIONARIES[name][0])
    loader = "dictionary_learning_sae_huggingface_loader_1"
    theirs = through_saelens(sae_lens, monkeypatch, tmp_path, loader, "a/b", "trainer_0")
    ours = load_any(folder)
    close(ours.encode(X), theirs.encode(X).detach())
    close(ours(X).reconstruction, theirs(X).detach())
    assert ours.provenance.hook_name == theirs.cfg.metadata.hook_name


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


# Recognition and damage ----------------------------------------------------------------------------------------------


def write_each(root: Path) -> dict[SaeFormat, Path]:
    """Return one SAE in each format."""
    return {
        SaeFormat.SAELENS: named("cfg.json", root / "s", {**MODERN, "architecture": "standard"}, PLAIN),
        SaeFormat.GEMMA_SCOPE: write_gemma(root / "g"),
        SaeFormat.GEMMA_SCOPE_2: write_gemma_2(root / "h"),
        SaeFormat.DICTIONARY_LEARNING: write_dictionary(root / "d", "AutoEncoder", DICTIONARIES["AutoEncoder"][0]),
        SaeFormat.SPARSIFY: write_sparsify(root / "p"),
    }


def test_each_format_is_recognised_by_its_folder_and_by_its_file(tmp_path):
    for expected, folder in write_each(tmp_path).items():
        found = find_format(folder)
        assert found.format is expected
        assert find_format(str(found.weights)) == found
        assert found.files == tuple(file for file in (found.weights, found.config) if file is not None)


def test_what_is_not_recognised_is_told_with_what_is_there_and_what_is_known(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: not found; allowed is a folder or weights file of SAELens"):
        find_format(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no SAE is recognised; found an empty folder; allowed is"):
        find_format(tmp_path)
    (tmp_path / "layers.0").mkdir()
    (tmp_path / "model.gguf").touch()
    with pytest.raises(InputError) as error:
        load_any(tmp_path)
    assert "found layers.0/, model.gguf; allowed is a folder or weights file of" in str(error.value)
    for known in ("SAELens (sae_weights.safetensors and cfg.json)", "Gemma Scope (params.npz)", "dictionary_learning"):
        assert known in str(error.value)
    with pytest.raises(InputError, match=r"no SAE is recognised; found layers\.0/, model\.gguf"):
        find_format(tmp_path / "model.gguf")
    for number in range(30):
        (tmp_path / f"x{number:02}").touch()
    with pytest.raises(InputError, match=r"x17 and 12 more; allowed"):
        find_format(tmp_path)


def test_a_folder_with_two_saes_is_refused_until_the_file_is_named(tmp_path):
    folder = write_gemma(tmp_path / "both")
    shutil.copy(write_sparsify(tmp_path / "p") / "sae.safetensors", folder)
    with pytest.raises(InputError, match=r"holds several SAEs \(params\.npz, sae\.safetensors\), allowed is one"):
        find_format(folder)
    assert find_format(folder / "params.npz").format is SaeFormat.GEMMA_SCOPE


@pytest.mark.parametrize("kind", [SaeFormat.SAELENS, SaeFormat.DICTIONARY_LEARNING, SaeFormat.SPARSIFY])
def test_a_configuration_that_is_missing_or_damaged_is_told(tmp_path, kind):
    config = find_format(write_each(tmp_path)[kind]).config
    config.write_text("[]")
    with pytest.raises(InputError, match=config.name):
        load_any(config.parent)
    config.write_text('{"trainer"')
    with pytest.raises(ArtefactError, match=rf"{config.name}: not readable as JSON"):
        load_any(config.parent)
    config.unlink()
    with pytest.raises(ArtefactError, match=rf"{config.name}: not found"):
        load_any(config.parent)


@pytest.mark.parametrize("kind", list(SaeFormat))
def test_a_weights_file_that_was_cut_off_or_is_something_else_is_told(tmp_path, kind):
    weights = find_format(write_each(tmp_path)[kind]).weights
    whole = weights.read_bytes()
    for content in (b"", b"<html>Not found</html>", whole[: len(whole) // 2], whole[:-1]):
        weights.write_bytes(content)
        with pytest.raises(ArtefactError, match=rf"{weights.name}: not readable.*download"):
            load_any(weights)


@pytest.mark.parametrize("kind", [SaeFormat.SAELENS, SaeFormat.GEMMA_SCOPE_2, SaeFormat.SPARSIFY])
def test_a_safetensors_header_of_absurd_size_is_refused(tmp_path, kind):
    weights = find_format(write_each(tmp_path)[kind]).weights
    for size in (2**40, 2**63):
        weights.write_bytes(struct.pack("<Q", size) + b"{}" * 50)
        with pytest.raises(ArtefactError, match=rf"{weights.name}: not readable.*header too large"):
            load_any(weights)


def test_numpy_objects_are_refused(tmp_path):
    folder = write_gemma(tmp_path / "g")
    np.savez(folder / "params.npz", W_enc=np.array([{}], dtype=object))
    with pytest.raises(ArtefactError, match=r"params\.npz: not readable as \.npz .*allow_pickle=False"):
        load_any(folder)


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    return write_each(tmp_path_factory.mktemp("each"))


@given(kind=st.sampled_from(list(SaeFormat)), data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_give_our_errors_or_an_sae_of_finite_weights(each, kind, data):
    weights = find_format(each[kind]).weights
    whole = bytearray(weights.read_bytes())
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    weights.write_bytes(changed)
    told = ""
    try:
        found = load_any(weights)
    except RefusalError as error:
        told = str(error)
    finally:
        weights.write_bytes(whole)
    assert str(weights.parent) in told or all(bool(torch.isfinite(each).all()) for each in found.parameters())


@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 100), k=st.integers(1, D_SAE))
@settings(max_examples=25)
def test_all_formats_of_the_same_weights_agree(tmp_path_factory, seed, scale, k):
    root, weights = tmp_path_factory.mktemp("same"), make_weights(seed)
    acts = make_acts(seed) * scale
    linear = {"encoder.weight": weights.W_enc.T, "encoder.bias": weights.b_enc}
    (root / "p").mkdir()
    (root / "p" / "cfg.json").write_text(json.dumps({"k": k, "d_in": D_MODEL}))
    tensors = {**linear, "W_dec": weights.W_dec, "b_dec": weights.b_dec}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, root / "p" / "sae.safetensors")
    state = {**linear, "decoder.weight": weights.W_dec.T, "b_dec": weights.b_dec, "k": torch.tensor(k)}
    write_dictionary(root / "d", "AutoEncoderTopK", state)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    named(
        "cfg.json",
        root / "s",
        {**MODERN, "architecture": "topk", "k": k, "metadata": META},
        {name: getattr(weights, name) for name in names},
    )
    one, *others = (load_any(root / name) for name in "pds")
    for other in others:
        assert torch.equal(one.encode(acts), other.encode(acts))
        assert torch.equal(one(acts).reconstruction, other(acts).reconstruction)
