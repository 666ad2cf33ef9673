"""The card beside an SAE says what the files say, the same bytes each time, and cannot be broken by names."""

from __future__ import annotations

import pytest
from made_metrics import sae_metrics

from refusal.artefacts import write_json
from refusal.errors import ArtefactError
from refusal.sae.card import card, write_card

METADATA = {"position": "readout", "hook_name": "blocks.1.hook_resid_post", "dataset_path": "embedded"}


def test_a_card_says_what_it_is_how_good_and_how_to_load_it():
    text = card(sae_metrics(), METADATA)
    for part in (
        "# Sparse autoencoder: planted/modular, residuals_1",
        "| site | residuals_1: the residual stream after block 1, before any final norm |",
        "| name in TransformerLens | blocks.1.hook_resid_post |",
        "| token position | the last prompt token (readout) |",
        "| prompts from | embedded |",
        "| rows | 100 to train, 100 held out |",
        "| d_sae | 56 | auto: one latent per 16 of the 900 training rows |",
        "| steps | 1000 | default |",
        "the weights are those of step 900",
        "| fraction of variance unexplained (FVU) | 0.050 | 0.030 to 0.070 | 100 | 0 perfect",
        "| refusal signal recovered | 0.970 | 0.950 to 0.990 | 100 |",
        "| loss recovered | 0.950 |",
        "| relative reconstruction bias (below 1: too short) | - | 0.980 |",
        "| seed 0 and seed 1 | 0.750 | 0.750 |",
        "| two halves of the prompts, 400 rows each | 0.700 | 0.700 |",
        "| violence | 0.050 |",
        'refusal.sae.load("FOLDER")',
        'SAE.load_from_disk("FOLDER")',
        "## Limits",
        "## Licence",
    ):
        assert part in text, part
    assert "None" not in text.replace("None is stated here", "")


def test_what_was_not_measured_is_said_with_its_reason():
    text = card(sae_metrics(signal=None, seeds=None, halves=None), METADATA)
    assert "| refusal signal recovered | not measured: mean ablation moves the refusal metric by 0.01" in text
    assert "## Stability" not in text
    bare = sae_metrics(seed=None).model_copy(
        update={"fidelity": None, "settings": {}, "heldout": None, "duplicate_share": None}
    )
    text = card(bare, {})
    assert "was not measured: no prompts were held out" in text
    assert "| origin | copied from /somewhere/else |" in text
    assert "## Settings" not in text


def test_a_name_cannot_break_a_card():
    hostile = sae_metrics().model_copy(update={"model": "a|b\n# c <script>`x`"})
    lines = card(hostile, METADATA).splitlines()
    assert "| model | a\\|b # c &lt;script>'x' |" in lines
    assert sum(line.startswith("# ") for line in lines) == 1


def test_a_card_is_written_once_and_its_files_are_needed(tmp_path):
    with pytest.raises(ArtefactError, match=r"metrics\.json: not found"):
        write_card(tmp_path)
    sae_metrics().save(tmp_path / "metrics.json")
    with pytest.raises(ArtefactError, match=r"cfg\.json: not found"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()
    write_json(tmp_path / "cfg.json", {"metadata": METADATA})
    write_card(tmp_path)
    before = (tmp_path / "README.md").stat()
    write_card(tmp_path)
    assert (tmp_path / "README.md").stat() == before
    sae_metrics(fvu=0.3).save(tmp_path / "metrics.json")
    write_card(tmp_path)
    assert "| 0.300 |" in (tmp_path / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "cfg.json", "metrics.json"]
