"""The JSON artefacts as models: one class a file, a sentence a field. A reader of any of them can be written from here.

Names of categories and prompts are as in the data set. Numbers that could not be measured are null, with the reason in
the field beside them. Metric values and effects are in logits (natural log), shares in [0, 1] unless said otherwise.
How such a file is written and read is in `refusal.record`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from refusal.record import Artefact, Record
from refusal.stats import Estimate

INFERENCE = "python src/run_inference.py --config FILE"
"""The command that makes the artefacts of the inference stage."""

Interval = tuple[float | None, float | None]
"""Lower and upper end of a confidence interval; null where it could not be computed."""
Matrix = dict[str, dict[str, float | None]]
"""`matrix[a][b]`; both orders are given."""
IntervalMatrix = dict[str, dict[str, Interval]]


class Measure(Record):
    """A number that is no share of prompts, with its 95 % interval."""

    value: float | None
    low: float | None
    high: float | None
    n: int = Field(description="Prompts that it rests on.")
    method: str = Field(description="How the interval was made.")
    reason: str | None = Field(description="Why value or interval is null; else null.")

    @classmethod
    def of(cls, estimate: Estimate) -> Measure:
        """Return the record of an estimate."""
        return cls(**{name: getattr(estimate, name) for name in ("value", "low", "high", "n", "method", "reason")})


# Inference -----------------------------------------------------------------------------------------------------------


class PromptLabel(Record):
    """What the model did on one prompt."""

    id: str = Field(description="Stable id of the prompt.")
    category: str
    dataset_label: Literal["safe", "toxic"] = Field(description="Which kind of file the prompt came from.")
    source: str = Field(description="The file: 80k, hard-1k or toxic.")
    behaviour: Literal["refused", "partly_refused", "complied", "cannot_tell"] = Field(
        description="What the model did."
    )
    rule: str = Field(description="The rule or judge that said so.")
    confidence: float | None = Field(
        default=None, description="Probability that a person would say the same; null where the detector gives none."
    )
    first_token_id: int = Field(description="Token the greedy answer begins with.")
    first_token_score: float | None = Field(
        description="Metric m at the first answer token, in logits; null without openers."
    )


class Openers(Record):
    """First answer tokens that tell refusal from compliance, learned from the model's own greedy answers."""

    refusal: tuple[int, ...]
    compliance: tuple[int, ...]
    refusal_text: tuple[str, ...]
    compliance_text: tuple[str, ...]
    ambiguous: tuple[int, ...] = Field(description="Tokens that begin both kinds of answers; they are not used.")
    answer_prefix: tuple[int, ...] = Field(
        default=(),
        description="Tokens that every answer begins with, refused or not; they are part of the prompt, so that the "
        "readout position is where answers part.",
    )
    reason: str | None = Field(
        description="Why there are no openers (a model that never or always refuses); else null."
    )


class RefusalLabels(Artefact):
    """`refusal_labels/MODEL.json`."""

    SCHEMA = "refusal-circuits/refusal-labels/1"
    MADE_BY = INFERENCE
    model: str
    detector: str = Field(default="rules", description="Who judged: a detector, or `judge: NAME`.")
    openers: Openers
    notices: tuple[str, ...] = Field(description="What the user should know about the data and the model.")
    prompts: tuple[PromptLabel, ...]


class ModelOutput(Record):
    """One prompt and its response."""

    id: str
    prompt: str
    response: str
    finish_reason: Literal["eos", "length"]


class ModelOutputs(Artefact):
    """`model_outputs/MODEL.json`."""

    SCHEMA = "refusal-circuits/model-outputs/1"
    MADE_BY = INFERENCE
    model: str
    outputs: tuple[ModelOutput, ...]


class Rate(Record):
    """A share with its Wilson 95 % interval."""

    value: float | None = Field(description="k / n; null when n is 0.")
    low: float | None
    high: float | None
    k: int
    n: int


class CategoryRates(Record):
    """Rates of one category, or of all together."""

    refusal_toxic: Rate = Field(description="Share of toxic prompts refused.")
    over_refusal_safe: Rate = Field(description="Share of safe prompts (80k) refused.")
    over_refusal_hard: Rate = Field(description="Share of safe prompts that look risky (hard-1k) refused.")
    compliance: Rate = Field(description="Share of all prompts complied with.")
    cannot_tell: Rate = Field(description="Share of all responses that no rule could judge.")


class EvaluationResults(Artefact):
    """`evaluation_results/MODEL.json`."""

    SCHEMA = "refusal-circuits/evaluation/1"
    MADE_BY = INFERENCE
    model: str
    overall: CategoryRates
    categories: dict[str, CategoryRates]


# Circuits ------------------------------------------------------------------------------------------------------------


class NodeRef(Record):
    """Names a node: a latent of the SAE at a site, or the site's error node (`latent` null)."""

    site: str
    latent: int | None


class CircuitNode(NodeRef):
    """A node of a circuit."""

    attribution: float = Field(
        description="Mean over refused prompts of the part of m - m_cf that is due to it, logits."
    )
    interval: Interval = Field(description="95 % bootstrap interval of the attribution over prompts.")
    minimality: float | None = Field(
        description="What the node adds to m when only the circuit of its site is kept, logits; near 0: the circuit "
        "could do without it. Null for the error node."
    )
    minimality_ci: Interval
    stability: float = Field(description="Share of bootstrap draws in which the node is chosen for the circuit.")
    frequency_refused: float = Field(description="Share of the category's refused prompts on which it is active.")
    frequency_complied: float = Field(description="Share of the category's complied prompts on which it is active.")
    top_prompts: tuple[str, ...] = Field(
        description="Ids of the prompts on which it is most active, most active first."
    )


class CircuitEdge(Record):
    """A directed edge between nodes of consecutive sites."""

    source: NodeRef
    target: NodeRef
    weight: float = Field(description="Part of the target's attribution that reaches it from the source, logits.")


class SizeCurve(Record):
    """Faithfulness and completeness by circuit size at one site; never clipped."""

    site: str
    size: tuple[int, ...] = Field(description="Number of latents in the circuit.")
    faithfulness: tuple[float | None, ...] = Field(description="(m(circuit only) - m_cf) / (m - m_cf); 1 = all of it.")
    completeness: tuple[float | None, ...] = Field(
        description="The same for the complement: 0 = the circuit was all of it."
    )
    faithfulness_ci: tuple[Interval, ...]
    completeness_ci: tuple[Interval, ...]
    chosen_size: int = Field(description="The size used at this site.")


class CircuitFile(Artefact):
    """`circuits/MODEL_CATEGORY_circuit.json`."""

    SCHEMA = "refusal-circuits/circuit/1"
    model: str
    category: str
    method: Literal["attribution", "correlation"]
    sae_seed: int
    n_refused: int
    n_complied: int
    metric_refused: float | None = Field(description="Mean m over the category's refused prompts, logits.")
    metric_complied: float | None = Field(description="Mean m over the category's complied prompts, logits.")
    completeness_residual: dict[str, float | None] = Field(
        description="Per site: |sum of attributions - (m - m_cf)| / |m - m_cf|, mean over prompts."
    )
    nodes: tuple[CircuitNode, ...]
    edges: tuple[CircuitEdge, ...]
    edge_remainder: dict[str, float | None] = Field(
        description="Per site: share of the circuit nodes' attribution that no edge from the previous site explains."
    )
    curves: tuple[SizeCurve, ...]
    notices: tuple[str, ...]


class DepthPoint(Record):
    """Effects at one site, mean over categories."""

    site: str
    own: float | None = Field(
        description="Necessity: share of a category's refusal removed by ablating its own circuit."
    )
    own_ci: Interval
    cross: float | None = Field(description="Share removed by ablating another category's circuit.")
    transfer: float | None = Field(description="Mean off-diagonal transfer: cross / own, both less random sets.")
    transfer_ci: Interval
    random: float | None = Field(description="Share removed by random sets matched on size and activation frequency.")
    sufficiency_own: float | None = Field(
        description="Share of the difference refused - complied that inducing a category's circuit restores in its "
        "complied prompts."
    )
    sufficiency: float | None = Field(
        description="The same with another category's circuit: as much where the site carries decisions, less where it "
        "carries evidence."
    )
    sufficiency_ci: Interval
    direct: float | None = Field(description="Share of m - m_cf that the site carries directly, later writes held.")
    separation_auc: float | None = Field(description="Cross-validated AUC of refused against complied, same category.")
    size: float | None = Field(description="Latents per circuit at this site, mean over categories.")
    before_commit: bool = Field(
        description="Earlier block, or neurons of a block that writes the decision: only they tell mechanisms apart."
    )
    mixing: float | None = Field(
        default=None,
        description="Of neurons: share of the pairs of categories whose attributions are neither alike nor apart; "
        "above `max_mixing` the neurons mix decisions made before them and do not decide.",
    )


class StructuralSimilarity(Record):
    """Agreement of the categories' attribution vectors at the decisive site."""

    site: str | None
    raw: dict[str, Matrix] = Field(description="By measure: jaccard, cosine, decoder_cosine.")
    noise_ceiling: dict[str, dict[str, float | None]] = Field(
        description="By measure and category: split-half agreement."
    )
    normalised: dict[str, Matrix] = Field(description="Raw over the ceiling; null where the ceiling is too low.")


class Baseline(Record):
    """The original rule, for comparison only."""

    rule: str
    average_similarity: float | None
    similarity: Matrix
    verdict: str | None


class SeedResult(Record):
    """The decisive numbers of one SAE seed."""

    seed: int
    decisive_site: str | None
    average_similarity: float | None
    verdict: str


class PermutationTest(Record):
    """Null in which the grouping of prompts into categories carries no information."""

    statistic: str
    observed: float | None
    null_mean: float | None
    p: float | None = Field(description="(1 + hits) / (1 + draws).")
    draws: int


class CategorySupport(Record):
    """How much evidence a category gives."""

    n_refused: int
    n_complied: int
    n_used: int = Field(description="Refused prompts used, the same for every category compared.")
    necessity: float | None = Field(description="Own necessity at the decisive site.")
    necessity_ci: Interval
    reason_left_out: str | None = Field(description="Why the category is not compared; null when it is.")


class SiteQuality(Record):
    """How good the SAEs of a site are, and whether they can carry a circuit."""

    site: str
    seeds: tuple[int | None, ...] = Field(description="Seeds of the SAEs; null for a pretrained one.")
    architecture: str
    d_sae: int
    l0: float | None = Field(description="Mean number of active latents on held-out rows, first seed.")
    dead_share: float | None = Field(description="Share of latents never active on held-out rows, first seed.")
    fvu: tuple[Measure, ...] = Field(description="Held-out fraction of variance unexplained, by seed.")
    signal_recovered: tuple[Measure, ...] = Field(
        description="Share of the refusal metric kept by reconstructions, by seed."
    )
    loss_recovered: tuple[Measure, ...] = Field(
        description="Share of the first token's distribution kept by reconstructions, by seed."
    )
    stability_seeds: float | None = Field(
        description="Cosine of latents matched between two seeds, weighted by frequency, mean over pairs of seeds."
    )
    stability_halves: float | None = Field(
        description="The same between SAEs trained on disjoint halves of the training prompts."
    )
    problems: tuple[str, ...] = Field(description="Why the SAEs cannot carry a circuit; empty when they can.")


class Comparison(Artefact):
    """`circuits/MODEL_comparison.json`: the evidence and the verdict. See the README for how to read it."""

    SCHEMA = "refusal-circuits/comparison/1"
    model: str
    categories: tuple[str, ...]
    verdict: Literal["MONOLITHIC", "PARTIALLY MODULAR", "MODULAR", "UNDETERMINED"]
    reason: str = Field(description="One sentence that can be quoted.")
    average_similarity: float | None = Field(description="Mean off-diagonal transfer at the decisive site.")
    average_similarity_ci: Interval
    decisive_site: str | None = Field(
        description="The most shared site before commit that carries decisions and where own necessity holds."
    )
    similarity: Matrix = Field(description="Symmetrised transfer at the decisive site; diagonal 1.")
    similarity_ci: IntervalMatrix
    groups: tuple[tuple[str, ...], ...] | None = Field(description="Partition of the categories into mechanisms.")
    groups_stability: float | None = Field(description="Mean adjusted Rand index of groups over bootstrap draws.")
    transfer: Matrix = Field(description="transfer[A][B]: share of B's own effect that ablating A's circuit has on B.")
    transfer_ci: IntervalMatrix
    structural_similarity: StructuralSimilarity
    depth_profile: tuple[DepthPoint, ...]
    text_auc: float | None = Field(
        description="Cross-validated AUC of refused against complied from the prompts' words, mean over categories."
    )
    text_auc_ci: Interval
    onset_site: str | None = Field(description="First site where refused and complied separate (AUC >= .9).")
    shared_from_site: str | None = Field(description="First site where transfer reaches the monolithic threshold.")
    commit_site: str | None = Field(description="First site whose direct effect carries the decision.")
    sharing_depth: float | None = Field(description="(commit - shared_from) / (commit - onset), in blocks.")
    seeds: tuple[SeedResult, ...]
    permutation: PermutationTest | None
    support: dict[str, CategorySupport]
    thresholds: dict[str, float]
    baseline: Baseline
    sae_quality: tuple[SiteQuality, ...] = Field((), description="The sites with SAEs, in order of depth.")
    notices: tuple[str, ...]


class Report(Artefact):
    """`circuit_analysis_report.json`: everything in one file."""

    SCHEMA = "refusal-circuits/report/1"
    project_version: str
    models: tuple[str, ...]
    comparisons: dict[str, Comparison]
    evaluations: dict[str, EvaluationResults]
    circuits: dict[str, dict[str, CircuitFile]] = Field(description="circuits[model][category].")
    directions: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="By model, where directions were studied: see circuits/directions/report.py."
    )
    configuration: dict[str, Any]
