"""What the report says of a model's refusal directions, and whether they and the circuits say the same."""

from __future__ import annotations

from pydantic import Field

from circuits.directions.agreement import DirectionAgreement, compare_with_circuits
from circuits.directions.files import STATEMENT, SUMMARY, direction_files
from circuits.directions.verdict import DirectionStatement, StatementFile
from refusal.artefacts import ResultPaths
from refusal.directions.found import Found
from refusal.directions.schemas import Chosen
from refusal.record import Record
from refusal.schemas import Comparison, Measure, Rate, Report
from refusal.wording import measured, number


class ConditionLine(Record):
    """What the model did on test prompts under one intervention."""

    name: str
    intervention: str = Field(description="What was done, in words.")
    refused: Rate = Field(description="Share refused of the prompts that are refused without intervention.")
    complied: Rate = Field(description="Share refused of those that are complied with without intervention.")
    perplexity: Measure = Field(description="Of the model's own complied answers.")


class ContrastLine(Record):
    """Another contrast's direction beside the refusal direction, at the layer of the selected one."""

    positive: str
    negative: str
    cosine: Measure
    ceiling: float | None = Field(description="The cosine that the same direction would show.")
    p: float | None = Field(description="Two-sided permutation p.")


class DirectionFindings(Record):
    """The directions of one model in `circuit_analysis_report.json`."""

    reason: str | None = Field(description="Why no direction could be formed; else null.")
    chosen: Chosen | None
    conditions: tuple[ConditionLine, ...]
    contrasts: tuple[ContrastLine, ...]
    statement: DirectionStatement = Field(description="What the directions say of the question; no verdict.")
    agreement: DirectionAgreement | None = Field(description="Beside the circuits; null where nothing was compared.")
    notices: tuple[str, ...]
    files: tuple[str, ...] = Field(description="Figures and text, relative to the result folder.")

    def in_words(self) -> str:
        """Return the findings as one sentence after another."""
        if self.chosen is None:
            return f"none: {self.reason}"
        by_name = {line.name: line for line in self.conditions}
        shown = [
            f"ablated at every place it leaves {_rate(by_name['ablation'].refused)} of refusals",
            f"added it makes {_rate(by_name['addition'].complied)} of complied prompts refused",
        ]
        where = f"{self.chosen.site}, position {self.chosen.position}"
        return f"{where}: {', '.join(shown)}. {self.statement.answer.value}: {self.statement.reason}. {self.beside()}"

    def beside(self) -> str:
        """Return whether directions and circuits agree, as a sentence."""
        if self.agreement is None or self.agreement.agrees is None:
            return "Directions and circuits cannot be held against each other: one of them says nothing."
        moved = self.agreement.transfer
        difference = "" if moved is None else f" (mean difference of transfer {number(moved.mean_difference)})"
        return f"Directions and circuits {'agree' if self.agreement.agrees else 'DISAGREE'}{difference}."


def _rate(rate: Rate) -> str:
    return f"{measured(rate)} (n {rate.n})"


def direction_findings(paths: ResultPaths, model: str, comparison: Comparison) -> DirectionFindings:
    """Return what the report holds of a model's directions.

    Args:
        paths: The result folder, in which the directions stage was run.
        model: The model.
        comparison: What the circuits say.

    Raises:
        ArtefactError: A file of the stage is missing or damaged.
    """
    found = Found.load(paths, model)
    statement = StatementFile.load(paths.directions(model) / STATEMENT).statement
    geometry = () if found.categories is None else found.categories.geometry
    transfer = () if found.categories is None else found.categories.transfer
    has_both = bool(geometry) and bool(comparison.transfer)
    return DirectionFindings(
        reason=found.directions.reason,
        chosen=found.directions.chosen,
        conditions=_conditions(found),
        contrasts=_contrasts(found),
        statement=statement,
        agreement=compare_with_circuits(statement, geometry, transfer, comparison) if has_both else None,
        notices=found.directions.notices,
        files=tuple(_shown(paths, model)),
    )


def _conditions(found: Found) -> tuple[ConditionLine, ...]:
    return tuple(
        ConditionLine(
            name=condition.name,
            intervention=condition.intervention,
            refused=condition.groups["refused"].refused,
            complied=condition.groups["complied"].refused,
            perplexity=condition.perplexity,
        )
        for condition in found.conditions.values()
    )


def _contrasts(found: Found) -> tuple[ContrastLine, ...]:
    chosen = found.directions.chosen
    if chosen is None or found.contrasts is None:
        return ()
    layers = [(each, each.layers[chosen.layer]) for each in found.contrasts.contrasts]
    return tuple(
        ContrastLine(positive=each.positive, negative=each.negative, cosine=at.cosine, ceiling=at.ceiling, p=at.p)
        for each, at in layers
    )


def _shown(paths: ResultPaths, model: str) -> list[str]:
    """Return the figures and the page of text, which a reader may want next."""
    wanted = (path for path in direction_files(paths, model) if path.parent.name == "visualizations")
    return [path.relative_to(paths.root).as_posix() for path in (paths.directions(model) / SUMMARY, *wanted)]


def findings_of(report: Report) -> dict[str, DirectionFindings]:
    """Return the directions in a report, by model."""
    return {model: DirectionFindings.model_validate(found) for model, found in report.directions.items()}
