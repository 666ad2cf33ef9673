"""Refusal rates, and who agrees with whom on what a model did.

| module | what it knows |
|---|---|
| `rates` | refusal, over-refusal, compliance and detection, by category |
| `agreement` | detectors and people beside each other |
| `label_files` | labels that people gave: which files |
| `plots` | their figures |
| `text` | their words and tables |
"""
