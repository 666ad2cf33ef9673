"""Where refusal is decided: activation patching of layers, attention heads and positions.

| module | knows |
|---|---|
| `pairs`, `pair_files`, `pairing` | contrast pairs: a refused prompt (clean) and a complied one (corrupted) |
| `tokens` | which positions of the two prompts of a pair correspond |
| `units` | what is patched: a site or a head, at which positions, in which direction, with which values |
| `runs`, `values` | the model on both prompts of every pair; the values that are put in |
| `exact`, `attribution` | the effect of each patch, measured, and estimated from gradients |
| `localise` | which units matter: intervals over pairs, corrected p-values |
| `direct`, `attention` | what a critical head writes, and where it looks |
| `directions` | which refusal direction is taken |
| `validation`, `clamping` | refusals among generated answers, with parts removed, kept, or set |
| `latents` | the same maps for the latents of a circuit |
| `compare_models` | two models of the same shape on the same pairs |
| `records`, `tables`, `markdown`, `stage` | the artefacts, and the stage that makes them |
"""
