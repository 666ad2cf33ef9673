"""Measure a chat model: prompts, activations, behaviour, sparse autoencoders, directions, interventions.

This package knows models and data. What is concluded from them (circuits, comparison, verdict) lives in `circuits`,
which imports this package and is never imported by it.
"""

__version__ = "0.1.0"
