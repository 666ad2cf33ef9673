"""Who wrote an SAE: recognised by names of files, and told where it is not."""

from __future__ import annotations

import shutil

import pytest
from foreign_saes import write_each, write_gemma, write_sparsify

from refusal.errors import InputError
from refusal.sae.foreign import SaeFormat, find_format, load_any


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
