"""Shards keep ids aligned, resume, and are never believed when damaged."""

from __future__ import annotations

import pytest
import torch

from refusal.errors import ArtefactError
from refusal.sites import Site
from refusal.store import ActivationStore, ActivationWriter, Answer, Shard, TopLogits, noted_prefix

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


def test_readout_of_some_prompts_opens_only_their_shards(folder):
    (folder / "shard-00000.safetensors").unlink()
    store = ActivationStore(folder)
    wanted = make_shard(4, 3).readout[SITES[0]]
    assert torch.equal(store.readout(SITES[0], ["p6", "p4", "p6"]), wanted[[2, 0, 2]])
    assert store.readout(SITES[0], []).shape == (0, 8)


def test_iter_readout_gives_one_shard_after_another(folder):
    found = list(ActivationStore(folder).iter_readout(SITES[1]))
    assert [ids for ids, _ in found] == [["p0", "p1", "p2", "p3"], ["p4", "p5", "p6"]]
    assert torch.equal(found[1][1], make_shard(4, 3).readout[SITES[1]])


def test_prompts_that_were_not_captured_are_told(folder):
    with pytest.raises(ArtefactError, match=r"no activations of 2 prompts, e.g. q1"):
        ActivationStore(folder).readout(SITES[0], ["p0", "q1", "q2"])


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


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_shard_with_a_damaged_row_file_is_captured_again(folder, content):
    (folder / "shard-00000.json").write_text(content)
    assert not ActivationWriter(folder, plan="a").is_complete(0)


def test_a_write_that_is_cut_off_leaves_no_complete_shard_and_no_rubbish(folder, monkeypatch):
    def cut_off(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("refusal.store.writer.write_sealed", cut_off)
    writer = ActivationWriter(folder, plan="b")
    with pytest.raises(KeyboardInterrupt):
        writer.write(0, make_shard(0, 4))
    assert not writer.is_complete(0)
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_top_logits_are_the_largest_with_the_sum_over_all():
    logits = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    top = TopLogits.of(logits)
    assert top.ids.shape == (3, 1024)
    assert torch.equal(logits.gather(1, top.ids), top.logits)
    assert torch.equal(top.logits[:, 0], logits.max(dim=1).values)
    torch.testing.assert_close(top.logsumexp, logits.logsumexp(dim=1))


def test_answers_of_a_changed_row_file_are_not_believed(folder):
    path = folder / "shard-00001.json"
    path.write_text(path.read_text().replace("sure", "sorry"))
    with pytest.raises(ArtefactError, match=r"shard-00001.json: damaged"):
        ActivationStore(folder).answers()


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


def test_what_was_moved_into_the_prompts_is_noted_in_each_whole_shard(tmp_path):
    assert noted_prefix(tmp_path) == ()
    writer = ActivationWriter(tmp_path, plan="a", prefix=(29871, 5))
    writer.write(0, make_shard(0, 4))
    writer.write(1, make_shard(4, 3))
    (tmp_path / "shard-00000.json").write_text("{")
    assert noted_prefix(tmp_path) == (29871, 5)


def test_finish_removes_shards_of_a_longer_run(folder):
    ActivationWriter(folder, plan="a").finish(1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        "shard-00000.json",
        "shard-00000.safetensors",
    ]
