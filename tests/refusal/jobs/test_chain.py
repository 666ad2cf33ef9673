"""Which jobs a configuration needs, what each is told, and after which it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusal.config import Config
from refusal.errors import InputError
from refusal.jobs.chain import Place, chain
from refusal.jobs.resources import Resources

PLACE = Place(Path("/project"), Path("/here"), Path("/here/results"), Path("/here/c.yaml"), "/env/bin/python")
CONFIG = ("--config", "/here/c.yaml")


def planned(jobs: dict, **config) -> list[tuple]:
    """Return name, what it is told beyond the configuration, what it needs, and tasks of each job."""
    found = chain(Config(**config), Resources.model_validate({"jobs": jobs}), PLACE)
    assert all(job.arguments[:2] == CONFIG for job in found)
    return [(str(job.name), job.arguments[2:], job.needs, len(job.tasks)) for job in found]


def test_without_shards_each_stage_is_a_job_after_the_one_before():
    assert planned({}) == [
        ("inference", (), None, 1),
        ("saes", ("--stages", "saes"), "inference", 1),
        ("circuits", ("--stages", "circuits,compare"), "saes", 1),
        ("report", ("--stages", "report"), "circuits", 1),
    ]


def test_shards_are_put_together_before_what_reads_them():
    assert planned({"inference": {"shards": 4}, "saes": {"shards": 3}}) == [
        ("inference", (), None, 4),
        ("merge", ("--merge",), "inference", 1),
        ("saes", ("--stages", "saes"), "merge", 3),
        ("circuits", ("--stages", "saes,circuits,compare"), "saes", 1),
        ("report", ("--stages", "report"), "circuits", 1),
    ]


@pytest.mark.parametrize(
    ("config", "shards", "expected"),
    [
        ({"stages": ("report",)}, 4, ["report"]),
        ({"stages": ("inference", "saes")}, 1, ["inference", "saes"]),
        ({"stages": ("inference", "saes")}, 2, ["inference", "merge", "saes", "circuits"]),
        ({"stages": ("saes", "compare"), "train_saes": False}, 2, ["circuits"]),
        ({"train_saes": False}, 1, ["inference", "circuits", "report"]),
    ],
)
def test_only_jobs_with_something_to_do_are_made(config, shards, expected):
    jobs = {"inference": {"shards": shards}, "saes": {"shards": shards}}
    found = planned(jobs, **config)
    assert [name for name, *_ in found] == expected
    assert [needs for _, _, needs, _ in found] == [None, *expected[:-1]]


def test_a_configuration_with_nothing_to_do_is_told():
    with pytest.raises(InputError, match=r"stages: found saes with train_saes: false, which is nothing to do; name"):
        planned({}, stages=("saes",), train_saes=False)


def test_flags_of_the_command_line_go_to_every_job():
    found = chain(Config(), Resources(), PLACE, ("--set", "seed=1"))
    assert all(job.arguments[:4] == (*CONFIG, "--set", "seed=1") for job in found)


def test_a_model_that_is_spread_over_gpus_is_one_process():
    asked = Resources(gpus=4)
    for device_map, processes in ((None, [4, 4, 1, 1]), ("auto", [1, 1, 1, 1])):
        found = chain(Config(device_map=device_map), asked, PLACE)
        assert [job.processes for job in found] == processes
