"""The commands of the entry scripts: the main job, and the inference stage alone.

What needs torch is imported when a command runs, so that flags and configuration are checked, and an interruption is
told in one line, from the first moment.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from refusal.cli import (
    SMALL_MODEL,
    build_parser,
    read_config,
    run_command,
    stages_named,
    use_one_thread_for_small_models,
)
from refusal.config import MAIN_STAGES, Config, Stage


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main job; return the exit status."""
    parser = build_parser("Is refusal monolithic or modular? Runs every stage that the file names.", main_job=True)
    arguments = parser.parse_args(argv)
    return run_command(partial(_main_job, arguments), verbose=arguments.verbose)


def inference_main(argv: Sequence[str] | None = None) -> int:
    """Run the inference stage alone; return the exit status."""
    parser = build_parser("Run the prompts: activations, responses, what the model did.", main_job=False)
    arguments = parser.parse_args(argv)
    return run_command(partial(_inference_job, arguments), verbose=arguments.verbose)


def directions_main(argv: Sequence[str] | None = None) -> int:
    """Run inference and the directions stage, or look at a folder of published directions; return the exit status."""
    parser = build_parser(
        "Refusal directions: find, select, try out; or look at published ones.", main_job=True, directions=True
    )
    arguments = parser.parse_args(argv)
    return run_command(partial(_directions_job, arguments), verbose=arguments.verbose)


def _main_job(arguments: argparse.Namespace) -> str:
    config = read_config(arguments)
    stages = config.stages
    if arguments.stages is not None:
        stages = stages_named(arguments.stages, "--stages")
    if arguments.train_saes:
        # the stage and what it needs; explicitly named stages stay as they are
        stages = stages if arguments.stages is not None else (Stage.INFERENCE, Stage.SAES)
        config = config.model_copy(update={"train_saes": True})
    forced = {stage for text in arguments.force for stage in stages_named(text, "--force")}
    return _run(config.model_copy(update={"stages": stages}), forced, dry_run=arguments.dry_run)


def _directions_job(arguments: argparse.Namespace) -> str:
    if arguments.inspect is not None:
        from circuits.direction_inspection import inspect_folder

        return inspect_folder(arguments.inspect, arguments.result_dir)
    config = read_config(arguments)
    stages: tuple[Stage, ...] = (Stage.INFERENCE, Stage.DIRECTIONS)
    if arguments.stages is not None:
        stages = stages_named(arguments.stages, "--stages")
    elif _is_compared(config.model_copy(update={"stages": stages})):
        stages = (*stages, Stage.REPORT)
    forced = {stage for text in arguments.force for stage in stages_named(text, "--force")}
    return _run(config.model_copy(update={"stages": stages}), forced, dry_run=arguments.dry_run)


def _is_compared(config: Config) -> bool:
    """Return whether the result folder holds an up-to-date comparison of every model, so that there is a report."""
    from circuits.analyzer import RefusalCircuitAnalyzer
    from refusal.artefacts import ResultPaths

    pipeline = RefusalCircuitAnalyzer(config).pipeline(ResultPaths(config.result_dir))
    return all(pipeline.state(unit).is_up_to_date for unit in pipeline.units if unit.stage is Stage.COMPARE)


def _inference_job(arguments: argparse.Namespace) -> str:
    config = read_config(arguments).model_copy(update={"stages": (Stage.INFERENCE,)})
    forced = {Stage.INFERENCE} if arguments.force else set()
    return _run(config, forced, dry_run=arguments.dry_run)


def _run(config: Config, forced: set[Stage], *, dry_run: bool) -> str:
    from circuits.analyzer import RefusalCircuitAnalyzer
    from circuits.plan import check_before_loading, describe_plan, model_size
    from refusal.processes import connected, this_part

    part = this_part()
    analyzer = RefusalCircuitAnalyzer(config, forced, part)
    if dry_run:
        return describe_plan(config, analyzer) if part.is_leader else ""
    check_before_loading(config)
    sizes = [model_size(name) for name in config.models]
    use_one_thread_for_small_models(max(size.weight_bytes if size is not None else SMALL_MODEL + 1 for size in sizes))
    with connected(part):
        if part.is_leader:
            return _last_line(config, analyzer.run().root)
        analyzer.team.serve()
    return ""


def _last_line(config: Config, root: Path) -> str:
    last = max(config.stages, key=list(Stage).index)
    if last is Stage.REPORT:
        page = root / ("report.html" if config.report.html else "circuit_analysis_summary.txt")
        return f"Written to {root}. Open {page}; refusal metrics: python run_analysis.py --results-dir {root}"
    if last is Stage.DIRECTIONS:
        return f"Written to {root}. Look into {root / 'directions'} and {root / 'visualizations'} (*_directions_*)"
    following = MAIN_STAGES[MAIN_STAGES.index(last) + 1]
    train = " --train-saes" if following is Stage.SAES else ""
    return f"Written to {root}. Next: python run_circuit_analysis.py --config FILE{train} (stage {following})"
