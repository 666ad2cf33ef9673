"""Every format: damage is told, and the same weights give the same SAE."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from foreign_saes import (
    D_MODEL,
    D_SAE,
    META,
    MODERN,
    make_acts,
    make_weights,
    write_dictionary,
    write_each,
    write_gemma,
    write_saelens,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from refusal.errors import ArtefactError, InputError, RefusalError
from refusal.sae.foreign import SaeFormat, find_format, load_any


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
    write_saelens(
        root / "s",
        {**MODERN, "architecture": "topk", "k": k, "metadata": META},
        {name: getattr(weights, name) for name in names},
    )
    one, *others = (load_any(root / name) for name in "pds")
    for other in others:
        assert torch.equal(one.encode(acts), other.encode(acts))
        assert torch.equal(one(acts).reconstruction, other(acts).reconstruction)
