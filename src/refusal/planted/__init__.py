"""Planted models: small chat models whose refusal mechanism is known because it was trained into known neurons.

`python -m refusal.planted make | verify | list`; where the shipped ones lie is in `refusal.prompts.embedded`.
"""
