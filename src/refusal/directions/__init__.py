"""Refusal directions: difference of means, selected by intervention, compared between categories.

`candidates` makes them, `selection` chooses one, `refusal.steering` acts with them, `formats` reads and writes the
published layout. Source: Arditi et al. arXiv 2406.11717.
"""
