"""What a model's directions are made of: its prompts as tokens, what it did, sides, splits and the metric.

Everything comes from the artefacts of the inference stage; the model loads when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from refusal.artefacts import ResultPaths
from refusal.config import Config, how_to_load
from refusal.directions.activations import positions_for
from refusal.directions.candidates import Contrast
from refusal.directions.splits import Part, Splits, split, spread
from refusal.metric import RefusalMetric
from refusal.models import ChatModel
from refusal.prompts import order_categories
from refusal.schemas import ModelOutputs, PromptLabel, RefusalLabels
from refusal.steering.answering import Asked
from refusal.steering.frame import Frame
from refusal.steering.run import Runs

MIN_SIDE = 8
"""Refused, and complied, prompts that a direction needs over all splits; below, nothing could be held out."""
MIN_CATEGORY = 3
"""Training prompts of each side that a category's own direction needs."""
_SIDES = {
    Contrast.BEHAVIOUR: ("refused", "complied with"),
    Contrast.DATASET_LABEL: ("toxic and refused", "safe and complied with"),
}


class Material:
    """The prompts of one model.

    Args:
        config: The configuration.
        model_name: The model.
        paths: Where the inference stage wrote.

    Raises:
        ArtefactError: The inference stage has not been run, or its files are damaged.
    """

    def __init__(self, config: Config, model_name: str, paths: ResultPaths) -> None:
        self.config = config
        self.settings = config.directions
        self.name = model_name
        labels = RefusalLabels.load(paths.refusal_labels(model_name))
        prompts = {output.id: output.prompt for output in ModelOutputs.load(paths.model_outputs(model_name)).outputs}
        self.labels: tuple[PromptLabel, ...] = labels.prompts
        self.openers = labels.openers
        self.texts: tuple[str, ...] = tuple(prompts[label.id] for label in labels.prompts)
        self.contrast = Contrast(self.settings.contrast)
        self.sides = tuple(self.contrast.side(label.dataset_label, label.behaviour) for label in labels.prompts)
        self.splits: Splits = split(labels.prompts, self.settings.split, config.seed)

    @property
    def problem(self) -> str | None:
        """Why no direction can be made of these prompts; None when one can."""
        if self.openers.reason is not None:
            return f"the refusal metric could not be learned: {self.openers.reason}"
        counts = [sum(side is wanted for side in self.sides) for wanted in (True, False)]
        for count, name in zip(counts, _SIDES[self.contrast], strict=True):
            if count < MIN_SIDE:
                return f"only {count} prompts were {name}; a direction needs at least {MIN_SIDE}"
        for part in Part:
            for refused, name in zip((True, False), _SIDES[self.contrast], strict=True):
                if not self.rows(part, refused=refused):
                    return f"no {part} prompt was {name}; use more prompts or another directions.split"
        return None

    @property
    def categories(self) -> tuple[str, ...]:
        """All categories, in the order used everywhere."""
        return order_categories(label.category for label in self.labels)

    def rows(
        self, part: Part | None, *, refused: bool, category: str | None = None, at_most: int | None = None
    ) -> list[int]:
        """Return the rows of one side.

        Args:
            part: Of this split; None: of any.
            refused: Which side of the contrast.
            category: Of this category; None: of any.
            at_most: At most so many, spread over the categories.
        """
        chosen = [
            row
            for row, side in enumerate(self.sides)
            if side is refused
            and (self.splits.parts[row] is part if part is not None else self.splits.parts[row] is not None)
            and category in (None, self.labels[row].category)
        ]
        categories = [label.category for label in self.labels]
        return chosen if at_most is None else spread(chosen, categories, at_most)

    @cached_property
    def own_categories(self) -> tuple[str, ...]:
        """Categories that have enough training prompts of each side for a direction of their own."""
        return tuple(
            category
            for category in self.categories
            if all(
                len(self.rows(Part.TRAIN, refused=refused, category=category)) >= MIN_CATEGORY
                for refused in (True, False)
            )
        )

    @property
    def metric(self) -> RefusalMetric:
        """The refusal metric m; ask for `problem` first."""
        return RefusalMetric(self.openers.refusal, self.openers.compliance)

    @cached_property
    def model(self) -> ChatModel:
        """The model, loaded when first asked for."""
        return ChatModel.load(self.name, **how_to_load(self.config))

    @cached_property
    def token_ids(self) -> list[list[int]]:
        """The prompts in their chat frame, with what every answer begins with."""
        prefix = self.openers.answer_prefix
        return [[*ids, *prefix] for ids in self.model.tokenize(self.texts, self.config.system_prompt)]

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Positions that directions are read at."""
        return positions_for(self.token_ids, self.settings.n_positions)

    @cached_property
    def runs(self) -> Runs:
        """The model and how it is run."""
        return Runs(self.model, Frame(len(self.positions)), self.config.batch_size)

    def tokens(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the tokens of some prompts."""
        return [self.token_ids[row] for row in rows]

    def asked(self, rows: Sequence[int]) -> Asked:
        """Return some prompts as they are asked."""
        return Asked([self.texts[row] for row in rows], self.tokens(rows), self.openers.answer_prefix)
