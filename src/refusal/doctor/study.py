"""What a configuration needs of this machine: data, models, room; without one, what ships with the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from refusal.doctor import hub, machine
from refusal.doctor.findings import Check, Finding, ok, problem

if TYPE_CHECKING:
    from refusal.config import Config


@dataclass(frozen=True)
class Study:
    """A configuration and what its models are called where they come from."""

    config: Config
    models: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Name -> folder or hub id, and revision; without those that do not exist."""

    @property
    def hub_models(self) -> list[tuple[str, str | None]]:
        """Hub ids and revisions of the models that are no folders."""
        return [(source, revision) for source, revision in self.models.values() if not Path(source).is_dir()]


def read(path: Path, overrides: Sequence[str]) -> Study:
    """Return the study of a configuration file.

    Raises:
        InputError: The file or an override is wrong.
    """
    from refusal.config import load
    from refusal.errors import InputError
    from refusal.models import resolve

    config, models = load(path, overrides), {}
    for name in config.models:
        try:
            models[name] = resolve(name)
        except InputError:  # told by the check of this model
            continue
    return Study(config, models)


def checks(study: Study) -> list[Check]:
    """Return what is looked at for a configuration."""
    return [*input_checks(study.config), Check("room", partial(_check_room, study))]


def input_checks(config: Config) -> list[Check]:
    """Return what is looked at of the files a configuration reads, which are the same on every node of a cluster."""
    models = [Check("model", partial(_check_model, name)) for name in config.models]
    return [Check("data", partial(_check_data, config)), *models]


def check_shipped() -> Iterator[Finding]:
    """Look at whether the models and prompts that ship with the package are there and can be read."""
    from refusal.prompts import embedded, load_prompts

    names = embedded.model_names()
    for name in names:
        yield from (each for each in hub.check_model(name, str(embedded.model_path(name)), None) if each.fix)
    rows = load_prompts("embedded", "both").prompts
    yield ok("data", f"{len(rows)} prompts and {len(names)} models ship with the package")


def _told(topic: str, check: Callable[[], object]) -> Iterator[Finding]:
    """Yield each line of an error that a check raises as a finding of its own."""
    from refusal.errors import InputError

    try:
        check()
    except InputError as error:
        for line in str(error).splitlines():
            found, _, fix = line.partition("; ")
            yield problem(topic, found, fix)


def _check_data(config: Config) -> Iterator[Finding]:
    from refusal.prompts import draw, load_prompts

    def read_data() -> None:
        """Read the data and draw from it."""
        pool = load_prompts(config.dataset_dir, config.safe_subset)
        size = config.num_samples_per_category
        drawn = draw(pool, config.categories, size, seed=config.seed, shuffle=config.shuffle)
        n_categories = len(drawn.categories)
        found.append(f"{config.dataset_dir}: {len(drawn.prompts)} prompts drawn in {n_categories} categories")

    found: list[str] = []
    yield from _told("data", read_data)
    yield from (ok("data", text) for text in found)


def _check_model(name: str) -> Iterator[Finding]:
    from refusal.models import resolve

    wrong = list(_told("model", lambda: resolve(name)))
    yield from wrong or hub.check_model(name, *resolve(name))


def _check_room(study: Study) -> Iterator[Finding]:
    """Compare sites, memory and disk with what the models of this machine need."""
    from refusal import needs

    there = study.config.model_copy(update={"models": tuple(study.models)})
    yield from _told("room", lambda: needs.check_before_loading(there))
    sizes = [needs.model_size(name) for name in study.models]
    known = [needs.estimate(study.config, size, needs.planned_prompts(study.config)) for size in sizes if size]
    yield from machine.check_memory(max((each.memory for each in known), default=0))
    total = sum(each.activations + each.saes for each in known)
    yield from machine.check_disk("results", study.config.result_dir, total)
