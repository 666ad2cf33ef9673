"""What an analysis starts from: labels and openers of the run, the model, the metric, and the pairs that can be used.

1. pairs come from where the configuration says, and are tokenised;
2. those that cannot be aligned, and those on which the model does not differ enough, are left out with the reason;
3. what remains is split: pairs for the maps, and others for validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from refusal.artefacts import ResultPaths
from refusal.config import Config, how_to_load
from refusal.config.patching import SOURCES
from refusal.errors import InputError
from refusal.metric import RefusalMetric
from refusal.models import ChatModel
from refusal.patching.pair_files import read_pairs
from refusal.patching.pairing import pairs_of_run
from refusal.patching.pairs import PairSet, embedded_pairs, in_turns, split_pairs
from refusal.patching.runs import DEFAULT_BATCH, PairRuns
from refusal.patching.tokens import tokenise, unaligned
from refusal.schemas import ModelOutputs, RefusalLabels

ACTS_BYTES = 2**30
"""Activations of one side of a batch at all positions and sites, at most, when `batch_size` is auto."""
SITES_A_LAYER, TOKENS_A_PAIR = 4, 64
"""What these are reckoned with."""
SPARE = 1.5
"""Pairs that are tried, as a multiple of those wanted: some turn out to differ too little."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of an analysis as the model runs them."""

    found: PairSet
    """The pairs of the maps, and what was left out."""
    maps: PairRuns
    held_out: PairRuns | None
    """Pairs for validation; None where there are none."""


class Material:
    """One model's labels, metric, pairs and the model itself, loaded as they are needed."""

    def __init__(self, config: Config, model_name: str, paths: ResultPaths) -> None:
        self.config = config
        self.name = model_name
        self.paths = paths
        self.labels = RefusalLabels.load(paths.refusal_labels(model_name))

    @cached_property
    def model(self) -> ChatModel:
        """The chat model."""
        return ChatModel.load(self.name, **how_to_load(self.config))

    @cached_property
    def metric(self) -> RefusalMetric:
        """The refusal metric with the openers that the inference stage learned.

        Raises:
            InputError: None could be learned: the model never or always refuses.
        """
        openers = self.labels.openers
        if openers.reason is not None:
            raise InputError(
                f"patching: {self.name}: the refusal metric has no openers: {openers.reason}; patching needs a model "
                "that refuses some prompts and complies with others; try other prompts (dataset_dir, safe_subset) or "
                "models"
            )
        return RefusalMetric(openers.refusal, openers.compliance)

    @property
    def batch_size(self) -> int:
        """Pairs that are run together; auto: as many as have their activations of all sites in `ACTS_BYTES`."""
        configured = self.config.batch_size
        if configured != "auto":
            return configured
        a_pair = self.model.n_layers * SITES_A_LAYER * TOKENS_A_PAIR * self.model.d_model * 4
        return max(1, min(DEFAULT_BATCH, ACTS_BYTES // a_pair))

    def candidates(self) -> PairSet:
        """Return the pairs from where the configuration says.

        Raises:
            InputError: The file is not of the form it should have.
        """
        source = self.config.patching.pairs
        if source not in SOURCES:
            return read_pairs(Path(source))
        if source == "embedded":
            return embedded_pairs()
        asked = self.config.categories
        labels = [each for each in self.labels.prompts if asked == "all" or each.category in asked]
        outputs = ModelOutputs.load(self.paths.model_outputs(self.name)).outputs
        texts = {each.id: each.prompt for each in outputs}
        ids = [each.id for each in labels]
        tokens = self.model.tokenize([texts[each] for each in ids], self.config.system_prompt)
        return pairs_of_run(labels, texts, dict(zip(ids, tokens, strict=True)))

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs that can be used.

        Raises:
            InputError: There are too few, with the reasons and what to do.
        """
        settings = self.config.patching
        metric, prefix = self.metric, self.labels.openers.answer_prefix
        found = self.candidates()
        wanted = settings.n_pairs + settings.validation_pairs
        tried = in_turns(found.pairs)[: max(wanted + 10, int(SPARE * wanted))]
        found = PairSet(found.source, tried, found.unusable)
        found.require()
        tokens, frame = tokenise(self.model, found.pairs, self.config.system_prompt, prefix)
        limit = self.model.context_length
        wrong = unaligned(
            tokens,
            only_equal=settings.align == "length",
            limit=None if limit is None else limit - self.config.max_new_tokens,
        )
        found = found.without(wrong)
        found.require()
        kept = {pair.id for pair in found.pairs}
        runs = PairRuns(
            self.model,
            metric,
            [each for each in tokens if each.pair.id in kept],
            frame,
            batch_size=self.batch_size,
            prefix=prefix,
        )
        runs, wrong = runs.without_small_gaps(settings.min_gap)
        found = found.without(wrong)
        found.require()
        maps, validation = split_pairs(found, settings.n_pairs, settings.validation_pairs)
        row = {each.pair.id: place for place, each in enumerate(runs.pairs)}
        held_out = runs.of([row[pair.id] for pair in validation]) if validation else None
        return Pairs(maps, runs.of([row[pair.id] for pair in maps.pairs]), held_out)
