"""Shards keep ids aligned, resume, and are never believed when damaged."""

from __future__ import annotations

import pytest
import torch

from refusal.errors import ArtefactError
from refusal.sites import Site
from refusal.store import ActivationStore, ActivationWriter, Answer, Shard, TopLogits

SITES = [Site.parse("mlp_0"), Site.parse("residuals_0"), Site.parse("residuals_15"), Site.parse("mlp_15")]


def make_shard(first: int, n: int) -> Shard:
    generator = torch.Generator().manual_seed(first)
    return Shard(
        tuple(Answer(f"p{first + row}", "sure", "eos", 7) for row in range(n)),
        {site: torch.randn(n, 8, generator=generator) for site in SITES},
        TopLogits.of(torch.randn(n, 30, generator=generator)),
    )


@pytest.fixture
def folder(tmp_path):
    writer = ActivationWriter(tmp_path / "m", plan="a")
    writer.write(0, make_shard(0, 4))
    writer.write(1, make_shard(4, 3))
    writer.finish(2)
    return tmp_path / "m"


def test_readout_follows_the_ids_asked_for(folder):
    store = ActivationStore(folder)
    both = [make_shard(0, 4), make_shard(4, 3)]
    for site in SITES:
        everything = torch.cat([shard.readout[site] for shard in both])
        assert torch.equal(store.readout(site), everything)
        assert torch.equal(store.readout(site, ["p6", "p0"]), everything[[6, 0]])
    assert store.prompt_ids == [f"p{row}" for row in range(7)]
    assert store.sites == sorted(SITES)


def test_first_token_logits_and_answers_come_back(folder):
    store = ActivationStore(folder)
    top = store.first_token()
    assert torch.equal(top.ids, TopLogits.cat([make_shard(0, 4).first_token, make_shard(4, 3).first_token]).ids)
    assert [answer.id for answer in store.answers()] == store.prompt_ids


def test_bfloat16_is_read_as_float32(tmp_path):
    shard = make_shard(0, 2)
    half = Shard(shard.answers, {SITES[0]: shard.readout[SITES[0]].bfloat16()}, shard.first_token)
    writer = ActivationWriter(tmp_path, plan="a")
    writer.write(0, half)
    writer.finish(1)
    assert ActivationStore(tmp_path).readout(SITES[0]).dtype == torch.float32


def test_a_shard_is_complete_only_whole_and_under_its_plan(folder):
    assert ActivationWriter(folder, plan="a").is_complete(0)
    assert not ActivationWriter(folder, plan="b").is_complete(0)
    assert not ActivationWriter(folder, plan="a").is_complete(2)
    path = folder / "shard-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert not ActivationWriter(folder, plan="a").is_complete(0)


def test_writing_twice_gives_the_same_bytes(folder, tmp_path):
    again = ActivationWriter(tmp_path / "again", plan="a")
    again.write(0, make_shard(0, 4))
    for name in ("shard-00000.safetensors", "shard-00000.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_flipped_bit_is_told_with_the_file_and_the_command(folder):
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match=r"shard-00001.safetensors: damaged.*run_inference"):
        ActivationStore(folder).readout(SITES[0])


def test_a_missing_shard_is_told(folder):
    (folder / "shard-00000.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"shard-00000\.safetensors: not found"):
        ActivationStore(folder).readout(SITES[0])


def test_a_site_that_was_not_captured_is_told_with_those_that_were(folder):
    with pytest.raises(ArtefactError, match=r"no activations of residuals_3; captured are mlp_0, residuals_0"):
        ActivationStore(folder).readout(Site.parse("residuals_3"))


def test_a_store_that_is_not_there_names_the_command(tmp_path):
    with pytest.raises(ArtefactError, match="run_inference"):
        ActivationStore(tmp_path)


def test_finish_removes_shards_of_a_longer_run(folder):
    ActivationWriter(folder, plan="a").finish(1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        "shard-00000.json",
        "shard-00000.safetensors",
    ]
