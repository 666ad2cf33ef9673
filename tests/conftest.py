"""Fixtures that several test files share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny_models import make_model

from refusal.models import ChatModel

torch.set_num_threads(1)
settings.register_profile("no timing", deadline=None)  # a busy machine is not a failure
settings.load_profile("no timing")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a campaign of hostile inputs be longer than that of every run."""
    parser.addoption("--hostile-seeds", type=int, default=1, help="how many times as many hostile inputs")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a command that ran in this process did to logging: its console writes to a file closed by now."""
    loggers = [logging.getLogger(name) for name in (None, "refusal", "circuits")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers = [handler for handler in logger.handlers if handler in handlers]


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], ChatModel]:
    """Return a function that gives a random model of a family, made once."""
    made: dict[str, ChatModel] = {}

    def get(family: str) -> ChatModel:
        if family not in made:
            made[family] = make_model(family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ordinary Hugging Face folder with a random Llama."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model = make_model("llama")
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder
