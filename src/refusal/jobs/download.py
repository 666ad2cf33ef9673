"""`bash jobs/download.sh --config F [--data ID]`: fetch the models and the data that a configuration names.

Of a model come the files that are read: weights as safetensors (as .bin only where there are no others), configuration,
tokenizer, chat template. Downloads that were cut go on where they were.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from refusal.cli import read_config, run_command
from refusal.config import Config
from refusal.doctor.hub import why_unreachable
from refusal.errors import InputError
from refusal.prompts import embedded

log = logging.getLogger(__name__)

GENERAL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""Configuration, tokenizer, chat template."""
PATIENCE = 30
"""Seconds that the hub may take to list a model's files."""
_ACCESS = (
    "check the id in models; a gated model needs its licence accepted on its page and a token: hf auth login; see "
    "python -m refusal.doctor --config FILE --online"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="jobs/download.sh", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file, see configurations/")
    parser.add_argument("--data", metavar="ID", help="hub id whose or-bench-*.csv files go to dataset_dir")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("-v", "--verbose", action="store_true", help="more detail")
    arguments = parser.parse_args(argv)
    arguments.result_dir = None
    return run_command(partial(_download, arguments), verbose=arguments.verbose)


def _download(arguments: argparse.Namespace) -> str:
    config = read_config(arguments)
    if arguments.data is not None:
        _get_data(arguments.data, config)
    wanted = [
        name for name in config.models if not name.startswith(embedded.PREFIX) and not Path(name).expanduser().exists()
    ]
    for name in wanted:
        _get_model(name)
    return f"All is here. Next: python -m refusal.doctor --config {arguments.config}"


def _get_model(name: str) -> None:
    """Fetch a model into the hub's cache.

    Raises:
        InputError: It cannot be had.
    """
    from huggingface_hub import HfApi, snapshot_download

    source, _, revision = name.partition("@")
    pinned = revision or None
    with _told(f"models: {name}", _ACCESS):
        listed = HfApi().model_info(source, revision=pinned, timeout=PATIENCE).siblings or []
        has_safetensors = any(file.rfilename.endswith(".safetensors") for file in listed)
        weights = "*.safetensors" if has_safetensors else "*.bin"
        folder = snapshot_download(source, revision=pinned, allow_patterns=[weights, *GENERAL_FILES])
    log.info("%s: in %s", name, folder)


def _get_data(repository: str, config: Config) -> None:
    """Fetch the files of a data set into the folder that the configuration names.

    Raises:
        InputError: They cannot be had, or the configuration means the shipped prompts.
    """
    from huggingface_hub import snapshot_download

    if config.dataset_dir == "embedded":
        raise InputError(
            "dataset_dir: found embedded, which ships with the package; for --data name the folder that the files "
            "should go to, e.g. --set dataset_dir=data/or-bench"
        )
    folder = Path(config.dataset_dir).expanduser()
    with _told(f"--data {repository}", "OR-Bench is bench-llm/or-bench"):
        snapshot_download(repository, repo_type="dataset", local_dir=folder, allow_patterns=["or-bench-*.csv"])
    if not list(folder.glob("or-bench-*.csv")):
        raise InputError(f"--data {repository}: has no or-bench-*.csv; OR-Bench is bench-llm/or-bench")
    log.info("%s: in %s", repository, folder)


@contextmanager
def _told(what: str, advice: str) -> Iterator[None]:
    """Turn whatever the hub's library raises (its transport's errors have no common base) into one message.

    Raises:
        InputError: What could not be downloaded, why, and what to do.
    """
    from huggingface_hub import constants

    unreachable = why_unreachable(constants.ENDPOINT)
    if unreachable is not None:
        raise InputError(
            f"{what}: {constants.ENDPOINT} cannot be reached ({unreachable}); download on a node with network, e.g. "
            "a login node; set HTTPS_PROXY if your cluster has a proxy"
        )
    try:
        yield
    except Exception as error:
        raise InputError(f"{what}: cannot be downloaded ({_first_line(error)}); {advice}") from error


def _first_line(error: Exception) -> str:
    """Return the first line of what the hub's library says.

    >>> _first_line(OSError("no route. ")), _first_line(ValueError())
    ('no route', 'ValueError')
    """
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


if __name__ == "__main__":
    raise SystemExit(main())
