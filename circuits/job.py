"""The commands of the entry scripts: the main job, and the inference stage alone.

What needs torch is imported when a command runs, so that flags and configuration are checked, and an interruption is
told in one line, from the first moment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from refusal.artefacts import ResultPaths
from refusal.cli import (
    SMALL_MODEL,
    build_parser,
    build_stage_parser,
    path_of_flag,
    read_config,
    run_command,
    stages_named,
    use_one_thread_for_small_models,
)
from refusal.config import MAIN_STAGES, Config, Stage
from refusal.errors import InputError
from refusal.processes import WHOLE, Part
from refusal.shards import named, parse, without_flag

if TYPE_CHECKING:
    from circuits.analyzer import RefusalCircuitAnalyzer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job; return the exit status."""
    parser = build_parser("Is refusal monolithic or modular? Runs every stage that the file names.", main_job=True)
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(words)
    return run_command(partial(_main_job, arguments, words), verbose=arguments.verbose)


def inference_main(argv: Sequence[str] | None = None) -> int:
    """Run the inference stage alone; return the exit status."""
    parser = build_parser("Run the prompts: activations, responses, what the model did.", main_job=False)
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(words)
    return run_command(partial(_inference_job, arguments, words), verbose=arguments.verbose)


def directions_main(argv: Sequence[str] | None = None) -> int:
    """Run inference and the directions stage, or look at a folder of published directions; return the exit status."""
    parser = build_stage_parser("Refusal directions: find, select, try out; or look at published ones.", inspects=True)
    arguments = parser.parse_args(argv)
    return run_command(partial(_directions_job, arguments), verbose=arguments.verbose)


def patching_main(argv: Sequence[str] | None = None) -> int:
    """Run activation patching, after the inference it needs; return the exit status."""
    parser = build_stage_parser("Where is refusal decided? Activation patching of layers, heads and positions.")
    arguments = parser.parse_args(argv)
    return run_command(partial(_beside_job, Stage.PATCHING, arguments), verbose=arguments.verbose)


@dataclass(frozen=True)
class _Job:
    """What a command line asks for."""

    config: Config
    forced: frozenset[Stage]
    dry_run: bool
    following: str
    """The command that puts shards together."""
    shard: Part | None = None
    is_merge: bool = False


def _main_job(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    config = read_config(arguments)
    stages = config.stages
    if arguments.stages is not None:
        stages = stages_named(arguments.stages, "--stages")
    if arguments.train_saes:
        # the stage and what it needs; explicitly named stages stay as they are
        stages = stages if arguments.stages is not None else (Stage.INFERENCE, Stage.SAES)
        config = config.model_copy(update={"train_saes": True})
    shard = _shard(arguments, is_forced=bool(arguments.force))
    if shard is not None and (stages != (Stage.SAES,) or not config.train_saes):
        found = f"stages {', '.join(stages)}" if config.train_saes else "train_saes: false"
        raise InputError(
            f"--shard: found {found}; what is shared out here is --stages saes alone (with train_saes: true); parts of "
            "inference are made by: python src/run_inference.py --config FILE --shard i/n"
        )
    forced = frozenset(stage for text in arguments.force for stage in stages_named(text, "--force"))
    config = config.model_copy(update={"stages": stages})
    return _run(_Job(config, forced, arguments.dry_run, without_flag("run_circuit_analysis.py", words), shard))


def _directions_job(arguments: argparse.Namespace) -> str:
    if arguments.inspect is not None:
        return _inspection(arguments)
    return _beside_job(Stage.DIRECTIONS, arguments)


def _inspection(arguments: argparse.Namespace) -> str:
    """Look at a folder of published directions.

    Raises:
        InputError: The folder is not in the published layout, or a flag has no meaning here.
    """
    from circuits.directions.inspection import DEFAULT_RESULTS, inspect_folder

    given = {"--set": arguments.overrides, "--stages": arguments.stages, "--force": arguments.force}
    for flag, value in (given | {"--dry-run": arguments.dry_run}).items():
        if value:
            raise InputError(
                f"{flag}: found with --inspect, which runs no stage; allowed beside it are --result-dir, -v"
            )
    folder = path_of_flag(arguments.inspect, "--inspect")
    results = DEFAULT_RESULTS if arguments.result_dir is None else path_of_flag(arguments.result_dir, "--result-dir")
    return inspect_folder(folder, results)


def _beside_job(stage: Stage, arguments: argparse.Namespace) -> str:
    """Run a stage that leads to no verdict after the inference it needs, and the report where there is one."""
    config = read_config(arguments)
    stages: tuple[Stage, ...] = (Stage.INFERENCE, stage)
    if arguments.stages is not None:
        stages = stages_named(arguments.stages, "--stages")
    elif _is_compared(config.model_copy(update={"stages": stages})):
        stages = (*stages, Stage.REPORT)
    forced = frozenset(stage for text in arguments.force for stage in stages_named(text, "--force"))
    return _run(_Job(config.model_copy(update={"stages": stages}), forced, arguments.dry_run, ""))


def _is_compared(config: Config) -> bool:
    """Return whether the result folder holds an up-to-date comparison of every model, so that there is a report."""
    from circuits.analyzer import RefusalCircuitAnalyzer
    from refusal.artefacts import ResultPaths

    pipeline = RefusalCircuitAnalyzer(config).pipeline(ResultPaths(config.result_dir))
    return all(pipeline.state(unit).is_up_to_date for unit in pipeline.units if unit.stage is Stage.COMPARE)


def _inference_job(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    config = read_config(arguments).model_copy(update={"stages": (Stage.INFERENCE,)})
    shard = _shard(arguments, is_forced=arguments.force)
    if arguments.merge and (shard is not None or arguments.force):
        other = "--force" if shard is None else "--shard"
        raise InputError(f"--merge: found with {other}; it makes nothing anew: run {other} first, then --merge alone")
    forced = frozenset({Stage.INFERENCE} if arguments.force else ())
    following = without_flag("src/run_inference.py", words, "--merge")
    return _run(_Job(config, forced, arguments.dry_run, following, shard, arguments.merge))


def _shard(arguments: argparse.Namespace, *, is_forced: bool) -> Part | None:
    """Return the part that a command line asks for.

    Raises:
        InputError: It has another form, or stands with --force.
    """
    if arguments.shard is None:
        return None
    if is_forced:
        raise InputError(
            "--shard: found with --force, which would remove what other shards have made; run --force without --shard, "
            "or choose another --result-dir"
        )
    return parse(arguments.shard)


def _run(job: _Job) -> str:
    from circuits.analyzer import RefusalCircuitAnalyzer
    from circuits.plan import describe_plan
    from refusal.needs import check_before_loading, model_size
    from refusal.processes import connected, this_part

    config, part = job.config, this_part()
    if config.device_map is not None and part.size > 1:
        raise InputError(
            f"device_map: found {config.device_map} with {part.size} processes; each would spread the model over all "
            "devices: start one process (without torchrun), or set device_map: null, so that each has a device of its "
            "own; independent parts may run with --shard i/n"
        )
    analyzer = RefusalCircuitAnalyzer(config, job.forced, part, job.shard or WHOLE, is_merge=job.is_merge)
    if job.dry_run:
        return describe_plan(config, analyzer) if part.is_leader else ""
    check_before_loading(config)
    sizes = [model_size(name) for name in config.models]
    use_one_thread_for_small_models(max(size.weight_bytes if size is not None else SMALL_MODEL + 1 for size in sizes))
    with connected(part):
        if part.is_leader:
            return _do(job, analyzer)
        analyzer.team.serve()
    return ""


def _do(job: _Job, analyzer: RefusalCircuitAnalyzer) -> str:
    """Run what is asked for and return the last line."""
    if job.shard is None:
        return _last_line(job.config, analyzer.run().root)
    (stage,) = job.config.stages
    root = analyzer.run_shard(stage).root
    return f"Shard {named(job.shard)} of {stage} is in {root}. When all {job.shard.size} are done, run: {job.following}"


def _last_line(config: Config, root: Path) -> str:
    last = max(config.stages, key=list(Stage).index)
    if last is Stage.PATCHING:
        return f"Written to {root}. Open {ResultPaths(root).patching(config.models[0]) / 'report.html'}"
    if last is Stage.REPORT:
        page = root / ("report.html" if config.report.html else "circuit_analysis_summary.txt")
        return f"Written to {root}. Open {page}; refusal metrics: python run_analysis.py --results-dir {root}"
    if last is Stage.DIRECTIONS:
        return f"Written to {root}. Look into {root / 'directions'} and {root / 'visualizations'} (*_directions_*)"
    following = MAIN_STAGES[MAIN_STAGES.index(last) + 1]
    train = " --train-saes" if following is Stage.SAES else ""
    return f"Written to {root}. Next: python run_circuit_analysis.py --config FILE{train} (stage {following})"
