"""How parts of a run are named, noted and found missing."""

from __future__ import annotations

import os

import pytest

from refusal import shards
from refusal.errors import InputError
from refusal.processes import Part


@pytest.mark.parametrize("text", ["0/3", "4/3", "a/b", "", "1", "1/", "/3", "1/0", "-1/3", "1/3/5", "1.0/3", "²/3"])
def test_what_is_no_part_is_told_with_an_example(text):
    with pytest.raises(InputError, match=r"^--shard: found '.*'; allowed is i/n with i from 1 to n, e.g. --shard 2/8$"):
        shards.parse(text)


def test_a_part_is_read_and_named():
    assert shards.parse("1/1") == Part(0, 1)
    assert shards.parse(" 12/40 ") == Part(11, 40)
    assert shards.named(Part(11, 40)) == "12/40"


def test_parts_within_parts_cover_everything_once():
    everything = sorted(
        number
        for shard in range(3)
        for rank in range(4)
        for part in [Part(rank, 4).within(Part(shard, 3))]
        for number in range(50)[part.rank :: part.size]
    )
    assert everything == list(range(50))


def test_what_is_missing_is_named_with_the_commands_of_its_parts(tmp_path):
    folder = tmp_path / "m"
    assert "2 of 9 shards are not there" in shards.missing(folder, [1, 4], 9)
    assert shards.missing(folder, [1, 4], 9).endswith(
        "shard-00001, shard-00004; run: python src/run_inference.py --config FILE"
    )
    shards.note(folder, Part(0, 5))
    shards.note(folder, Part(0, 3))
    os.utime(folder / ".parts-5", (1, 1))
    said = shards.missing(folder, [1, 2, 4], 9)
    assert said.endswith("FILE --shard 2/3; python src/run_inference.py --config FILE --shard 3/3")
    assert shards.missing(folder, range(12), 99).count("shard-000") == 10
    shards.forget(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("flag", [["--shard", "1/3"], ["--shard=1/3"]])
def test_the_command_without_its_shard_keeps_the_rest(flag):
    words = ["--config", "a b.yaml", *flag, "--set", "seed=1"]
    assert shards.without_flag("run.py", words) == "python run.py --config 'a b.yaml' --set seed=1"
    assert shards.without_flag("run.py", words, "--merge").endswith("seed=1 --merge")
