"""dictionary_learning: files made by hand, against each class's formula and SAELens' converter."""

from __future__ import annotations

import os
import pickle
import shutil

import pytest
import torch
from foreign_saes import (
    D_MODEL,
    D_SAE,
    LINEAR,
    PLAIN,
    K,
    W,
    X,
    check,
    close,
    dense_topk,
    jumprelu_latents,
    through_saelens,
    write_dictionary,
)

from refusal.errors import ArtefactError, InputError
from refusal.sae.foreign import load_any

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
    "JumpReluAutoEncoder": (JUMP_STATE, jumprelu_latents()),
}


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


@pytest.mark.parametrize("name", [name for name in DICTIONARIES if name != "AutoEncoderNew"])
def test_dictionaries_equal_what_saelens_makes_of_them(sae_lens, monkeypatch, tmp_path, name):
    folder = write_dictionary(tmp_path / "a" / "b" / "trainer_0", name, DICTIONARIES[name][0])
    loader = "dictionary_learning_sae_huggingface_loader_1"
    theirs = through_saelens(sae_lens, monkeypatch, tmp_path, loader, "a/b", "trainer_0")
    ours = load_any(folder)
    close(ours.encode(X), theirs.encode(X).detach())
    close(ours(X).reconstruction, theirs(X).detach())
    assert ours.provenance.hook_name == theirs.cfg.metadata.hook_name
