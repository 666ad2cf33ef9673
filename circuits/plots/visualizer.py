"""All figures of a run: `CircuitVisualizer` draws artefacts and writes them where users look for them.

The figures themselves are pure functions: `similarity_heatmap`, `depth_profile`, `circuit_plot`,
`training_curves`. No model is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from circuits.graph import SparseFeatureCircuit
from circuits.plots.circuit import circuit_plot
from circuits.plots.depth import depth_profile
from circuits.plots.similarity import similarity_heatmap
from circuits.plots.style import ImageFormat, save_figure
from circuits.plots.training import training_curves
from refusal.artefacts import ResultPaths
from refusal.schemas import CircuitFile, Comparison, SiteQuality
from refusal.sites import Site


@dataclass(frozen=True)
class CircuitVisualizer:
    """Draws artefacts into the `visualizations` folder of a result folder."""

    paths: ResultPaths
    image_format: ImageFormat = "png"

    def heatmap(self, comparison: Comparison) -> Path:
        """Write the similarity heatmap of a model and return its path."""
        path = self.paths.similarity_heatmap(comparison.model, self.image_format)
        return save_figure(similarity_heatmap(comparison), path, self.image_format)

    def depth(self, comparison: Comparison) -> Path:
        """Write the depth profile of a model and return its path."""
        path = self.paths.depth_profile(comparison.model, self.image_format)
        return save_figure(depth_profile(comparison), path, self.image_format)

    def circuit(self, circuit: CircuitFile) -> Path:
        """Write the picture of one category's circuit and return its path."""
        path = self.paths.circuit_plot(circuit.model, circuit.category, self.image_format)
        return save_figure(circuit_plot(SparseFeatureCircuit.from_file(circuit)), path, self.image_format)

    def training(self, model: str, quality: SiteQuality) -> list[Path]:
        """Write the training curves of a site's SAEs and return the path; nothing where none were trained."""
        from circuits.sae_history import read_courses  # brings torch, which no other figure needs

        site = Site.parse(quality.site)
        courses = read_courses(self.paths, model, site, quality.seeds)
        if not courses:
            return []
        path = self.paths.training_plot(model, site, self.image_format)
        return [save_figure(training_curves(courses), path, self.image_format)]

    def model(self, comparison: Comparison, circuits: Iterable[CircuitFile]) -> list[Path]:
        """Write all figures of a model and return their paths."""
        trained = [path for quality in comparison.sae_quality for path in self.training(comparison.model, quality)]
        drawn = [self.circuit(circuit) for circuit in circuits]
        return [self.heatmap(comparison), self.depth(comparison), *drawn, *trained]
