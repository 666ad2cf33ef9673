"""Activation patching beside the circuits: the stage, its figures and its part of the page.

What patching is and measures is in `refusal.patching`.
"""
