"""Figures: pure functions from artefacts to pictures, one module a kind; `CircuitVisualizer` writes a run's.

`style` holds what all share: canvas, colours, text, saving.
"""

from circuits.plots.circuit import circuit_plot
from circuits.plots.depth import depth_profile
from circuits.plots.similarity import similarity_heatmap
from circuits.plots.training import training_curves
from circuits.plots.visualizer import CircuitVisualizer

__all__ = ["CircuitVisualizer", "circuit_plot", "depth_profile", "similarity_heatmap", "training_curves"]
