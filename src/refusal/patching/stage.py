"""The patching stage for one model: maps, critical units, validation, clamping, latents, and the files that say so.

1. material: labels and openers of the inference stage, pairs, model;
2. maps, measured and estimated, and direct effects; located with intervals and corrected p-values;
3. what writers write, and where the critical heads look;
4. answers of held-out prompts with the critical units ablated or kept, and with a direction or latents clamped;
5. the latents of circuits, where there are any, and whether categories use the same neurons;
6. `patching.json`, tables, the Markdown report.

Every map and every part is kept as it is finished; a run that was stopped goes on there.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from refusal.artefacts import ResultPaths, sha256_file
from refusal.config import Config, chosen
from refusal.patching.answers import VALIDATED, Answers, control_notice
from refusal.patching.directions import taken_direction
from refusal.patching.findings import Findings, criteria_of, locate_all
from refusal.patching.kept import Kept
from refusal.patching.latent_records import latent_records
from refusal.patching.latents import CircuitLatents, circuit_latents
from refusal.patching.localise import Located
from refusal.patching.maps import make_maps
from refusal.patching.markdown import markdown_report
from refusal.patching.material import Material
from refusal.patching.parts import attention_records, cosine_with_pairs, pairs_record, structure_records, write_records
from refusal.patching.records import (
    FORMULAS,
    AttentionRecord,
    ClampRecord,
    ConditionRecord,
    LatentRecord,
    PatchingResults,
    StructureRecord,
)
from refusal.patching.tables import write_tables
from refusal.weights import weights_digest
from refusal.wording import number

log = logging.getLogger(__name__)

RESULTS, REPORT = "patching.json", "report.md"
"""Files of the stage, beside tables, maps and parts."""


def run_patching(config: Config, model_name: str, paths: ResultPaths) -> None:
    """Run the patching stage for one model.

    Raises:
        InputError: The pairs are wrong or too few, or the model cannot be patched.
        ArtefactError: An artefact of an earlier stage is missing or damaged.
    """
    folder = paths.patching(model_name)
    results = _Study(Material(config, model_name, paths), folder).results()
    results.save(folder / RESULTS)
    write_tables(results, folder, latex=config.patching.latex)
    (folder / REPORT).write_text(markdown_report(results), encoding="utf-8")


def circuits_digest(paths: ResultPaths, model: str) -> str | None:
    """Return a digest of a model's circuits; None where there are none."""
    prefix = paths.circuit(model, "x").name.removesuffix("x_circuit.json")
    files = sorted(
        path for path in paths.circuit(model, "x").parent.glob("*_circuit.json") if path.name.startswith(prefix)
    )
    if not files:
        return None
    return hashlib.sha256("".join(path.name + sha256_file(path) for path in files).encode()).hexdigest()


class _Study:
    """One model's study."""

    def __init__(self, material: Material, folder: Path) -> None:
        self.material = material
        self.settings = material.config.patching
        self.folder = folder
        self.runs = material.pairs.maps
        self.kept = Kept(folder, self._plan())
        self.notices: list[str] = []
        self.taken = taken_direction(material.config, material.model, material.paths)
        if self.taken is not None:
            cosine = cosine_with_pairs(self.runs, self.taken)
            self.notices.append(
                f"the refusal direction is {self.taken.source}; its cosine with the pairs' difference in means at "
                f"{self.taken.site} is {number(cosine)}"
            )

    def _plan(self) -> dict[str, Any]:
        """Return what decides everything: model, prompts, and how they are run."""
        material = self.material
        return {
            "version": 1,
            "weights": weights_digest(material.model.model),
            "dtype": str(material.model.dtype),
            "openers": [material.metric.refusal_openers, material.metric.compliance_openers],
            "pairs": [[pair.pair.id, pair.clean, pair.corrupted] for pair in self.runs.pairs],
            "frame": [self.runs.frame.n_before, self.runs.frame.n_after],
            "seed": material.config.seed,
        }

    def _answer_plan(self, *keys: str) -> dict[str, Any]:
        """Return what decides parts for which prompts are answered."""
        held_out = self.material.pairs.held_out
        names = ("max_new_tokens", "labels", "patching.on_answer", "patching.random_sets", *keys)
        return {
            "config": chosen(self.material.config, names),
            "held out": []
            if held_out is None
            else [[each.pair.id, each.clean, each.corrupted] for each in held_out.pairs],
        }

    def results(self) -> PatchingResults:
        """Return all results."""
        config, settings = self.material.config, self.settings
        criteria = criteria_of(settings, config.analysis.bootstrap)
        maps = make_maps(self.runs, settings, self.kept)
        findings = Findings(locate_all(maps, self.runs.categories, config.seed, criteria), settings)
        heads = findings.critical("heads", settings.max_heads)
        held = self._circuits()
        direction_site, writes = write_records(self.runs, self.taken, config)
        results = PatchingResults.build(
            model=self.material.name,
            n_layers=self.runs.model.n_layers,
            n_heads=self.runs.model.n_heads,
            formulas=FORMULAS,
            pairs=pairs_record(self.material.pairs, config.seed),
            criteria={
                "correction": criteria.correction,
                "alpha": criteria.alpha,
                "min_effect": criteria.min_effect,
                "bootstrap": criteria.n_draws,
            },
            maps=tuple(each.record for each in findings.located),
            agreement=findings.agreements(),
            direction_site=direction_site,
            writes=tuple(writes),
            critical_heads=tuple(each.unit.name for each in heads),
            critical_layers={
                kind: tuple(each.unit.name for each in findings.critical(kind))
                for kind in settings.kinds
                if kind != "heads"
            },
            attention=tuple(self._attention(heads)),
            validation=tuple(self._validation(findings, heads)),
            clamping=tuple(self._clamping(held)),
            latents=tuple(self._latents(held)),
            structure=tuple(self._structure()),
            circuits=circuits_digest(self.material.paths, self.material.name) if settings.latents else None,
            notices=tuple(dict.fromkeys([*self.material.model.notices, *self.notices])),
        )
        self.kept.forget_others()
        return results

    def _attention(self, heads: list[Located]) -> list[AttentionRecord]:
        if not self.settings.attention or not heads:
            return []
        units = [each.unit for each in heads]
        return self.kept.part(
            "attention",
            AttentionRecord,
            {"heads": [unit.name for unit in units], **chosen(self.material.config, ["analysis.bootstrap"])},
            lambda: attention_records(self.runs, units, self.material.config),
        )

    def _validation(self, findings: Findings, heads: list[Located]) -> list[ConditionRecord]:
        if self.material.pairs.held_out is None:
            self.notices.append("no pairs are left for validation, so nothing was ablated or clamped in answers")
            return []
        records: list[ConditionRecord] = []
        for kind in VALIDATED:
            if kind not in self.settings.kinds:
                continue
            critical = heads if kind == "heads" else findings.critical(kind)
            if not critical:
                self.notices.append(f"{kind}: no unit is critical, so none was ablated")
                continue
            notice = control_notice(kind, critical, findings)
            if notice is not None:
                self.notices.append(notice)
            more = {
                "units": [each.unit.name for each in critical],
                "every": [unit.name for unit in findings.every(kind)],
                **self._answer_plan("patching.validate_with"),
            }
            records += self.kept.part(
                f"validation_{kind}",
                ConditionRecord,
                more,
                lambda kind=kind, critical=critical: Answers(self.material).validation(kind, critical, findings),  # type: ignore[misc]
            )
        return records

    def _clamping(self, held: list[CircuitLatents]) -> list[ClampRecord]:
        if self.material.pairs.held_out is None:
            return []
        more = self._answer_plan("patching.strengths")
        records: list[ClampRecord] = []
        if "direction" in self.settings.clamp:
            decides = more | {"direction": None if self.taken is None else [self.taken.digest, self.taken.source]}
            records += self.kept.part(
                "clamp_direction", ClampRecord, decides, lambda: Answers(self.material).direction(self.taken)
            )
        if "latents" in self.settings.clamp and held:
            more |= {"circuits": circuits_digest(self.material.paths, self.material.name)}
            records += self.kept.part("clamp_latents", ClampRecord, more, lambda: Answers(self.material).latents(held))
        return records

    def _circuits(self) -> list[CircuitLatents]:
        if not self.settings.latents:
            return []
        categories = sorted({label.category for label in self.material.labels.prompts})
        held = circuit_latents(self.material.paths, self.material.name, categories)
        if not held:
            self.notices.append(
                "there are no circuits in this result folder, so no latents were mapped; make them with: "
                "python run_circuit_analysis.py --config FILE"
            )
        return held

    def _latents(self, held: list[CircuitLatents]) -> list[LatentRecord]:
        if not held:
            return []
        config = self.material.config
        names = [
            "analysis.bootstrap",
            "patching.max_latents",
            "patching.modes",
            "patching.correction",
            "patching.alpha",
        ]
        more = {
            "circuits": circuits_digest(self.material.paths, self.material.name),
            **chosen(config, [*names, "patching.min_effect"]),
        }
        return self.kept.part("latents", LatentRecord, more, lambda: latent_records(self.material, held))

    def _structure(self) -> list[StructureRecord]:
        more = chosen(self.material.config, ["patching.ig_steps"])
        return self.kept.part(
            "structure",
            StructureRecord,
            more,
            lambda: structure_records(self.runs, max(5, self.settings.ig_steps), self.material.config.seed),
        )
