"""Evaluation: answers to test prompts under each intervention, judged, and what it costs on ordinary text.

Text is the model's own complied answers to complied test prompts, and the paragraphs of a file if one is configured.
Each condition is a file of its own, so that a killed run goes on with the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

from refusal.directions.acting import Acting
from refusal.directions.found import condition_file
from refusal.directions.judging import MaterialAnswerer, tally_groups
from refusal.directions.schemas import Condition, SteeredAnswer
from refusal.directions.splits import Part
from refusal.directions.text import MOST_TOKENS, read_paragraphs
from refusal.kept import kept
from refusal.labels import Behaviour
from refusal.schemas import Measure
from refusal.steering.answering import Judged
from refusal.steering.directional import Intervention
from refusal.steering.losses import Text, losses, perplexity
from refusal.steering.run import same


class Trials:
    """The evaluation of one direction.

    Args:
        answerer: Makes and judges answers; its material has the prompts.
        acting: The direction and how it is applied.
        folder: Where conditions are kept.
        plan: Hash of all that they depend on.
    """

    def __init__(self, answerer: MaterialAnswerer, acting: Acting, folder: Path, plan: str) -> None:
        self.answerer = answerer
        self.material = answerer.material
        self.acting = acting
        self.folder = folder
        self.plan = plan
        at_most = self.material.settings.test_prompts
        self.rows = [
            row for refused in (True, False) for row in self.material.rows(Part.TEST, refused=refused, at_most=at_most)
        ]

    def path(self, name: str) -> Path:
        """Return the file of a condition."""
        return self.folder / condition_file(name)

    def run(self) -> tuple[Condition, ...]:
        """Return every condition; those that are kept under this plan are not made anew."""
        conditions = self.acting.conditions().items()
        return tuple(
            kept(self.path(name), Condition, self.plan, partial(self._make, name, words, interventions))
            for name, (words, interventions) in conditions
        )

    def _make(self, name: str, words: str, interventions: Sequence[Intervention]) -> Condition:
        answers = self._baseline if not interventions else self._answers(interventions)
        seed, n_draws = self.material.config.seed, self.material.config.analysis.bootstrap
        own = losses(self.material.runs, self._own_texts, interventions).cross_entropy(seed, n_draws)
        of_file = None
        if self._file_texts:
            of_file = losses(self.material.runs, self._file_texts, interventions).cross_entropy(seed, n_draws)
        labels = [self.material.labels[row] for row in self.rows]
        return Condition.build(
            plan=self.plan,
            name=name,
            intervention=words,
            groups=tally_groups([answer.behaviour for answer in answers], self._groups),
            cross_entropy=Measure.of(own),
            perplexity=Measure.of(perplexity(own)),
            text_cross_entropy=None if of_file is None else Measure.of(of_file),
            text_perplexity=None if of_file is None else Measure.of(perplexity(of_file)),
            answers=tuple(
                SteeredAnswer(id=label.id, response=answer.text, behaviour=answer.behaviour.value)
                for label, answer in zip(labels, answers, strict=True)
            ),
        )

    def _answers(self, interventions: Sequence[Intervention]) -> list[Judged]:
        return self.answerer.answer(self.material.asked(self.rows), 1, same(*interventions))[0]

    @cached_property
    def _baseline(self) -> list[Judged]:
        return self._answers(())

    @cached_property
    def _groups(self) -> dict[str, list[int]]:
        """Rows of the answers by side, by dataset label, and by category among the refused."""
        groups: dict[str, list[int]] = {"refused": [], "complied": [], "toxic": [], "safe": []}
        groups |= {f"refused: {category}": [] for category in self.material.categories}
        for place, row in enumerate(self.rows):
            label, is_refused = self.material.labels[row], self.material.sides[row]
            groups["refused" if is_refused else "complied"].append(place)
            groups[label.dataset_label].append(place)
            if is_refused:
                groups[f"refused: {label.category}"].append(place)
        return groups

    @cached_property
    def _own_texts(self) -> list[Text]:
        """Complied test prompts with the model's own complied answers."""
        return [
            Text(tuple(self.material.token_ids[row]), answer.response.token_ids)
            for row, answer in zip(self.rows, self._baseline, strict=True)
            if answer.behaviour is Behaviour.COMPLIED and answer.response.token_ids
        ]

    @cached_property
    def _file_texts(self) -> list[Text]:
        path = self.material.settings.text_file
        if path is None:
            return []
        model = self.material.model
        longest = min(MOST_TOKENS, model.context_length or MOST_TOKENS)
        found = [tuple(model.tokenizer(text)["input_ids"][:longest]) for text in read_paragraphs(path)]
        return [Text(ids[:1], ids[1:], is_chat=False) for ids in found if len(ids) > 1]
