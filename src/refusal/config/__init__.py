"""The configuration of a study, and nothing else that reads YAML: `load` returns a `Config`.

| module | knows |
|---|---|
| `study` | the keys of the top level; how a file and `--set` become a configuration |
| `sections`, `directions`, `patching` | the keys of the sections |
| `types` | what values of a kind may be |
| `messages` | how what is wrong is said |
"""

from refusal.config.directions import DirectionsConfig
from refusal.config.patching import PatchingConfig
from refusal.config.sections import (
    AnalysisConfig,
    CaptureConfig,
    CircuitConfig,
    LabelsConfig,
    ReportConfig,
    SaeConfig,
    TrackingConfig,
)
from refusal.config.study import MAIN_STAGES, Config, LoadingOptions, Stage, chosen, how_to_load, load, plain

__all__ = [
    "MAIN_STAGES",
    "AnalysisConfig",
    "CaptureConfig",
    "CircuitConfig",
    "Config",
    "DirectionsConfig",
    "LabelsConfig",
    "LoadingOptions",
    "PatchingConfig",
    "ReportConfig",
    "SaeConfig",
    "Stage",
    "TrackingConfig",
    "chosen",
    "how_to_load",
    "load",
    "plain",
]
