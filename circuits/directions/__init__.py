"""Refusal directions beside the circuits: the stage, its part of report and page, and whether both say the same.

What a direction is and does is measured by `refusal.directions` and `refusal.steering`.

| module | knows |
|---|---|
| `stage` | the stage of the main job |
| `verdict` | one direction, or one per category |
| `agreement` | whether that agrees with the circuits |
| `report`, `summary`, `figures` | what a reader sees of it |
| `inspection`, `files` | published directions: figures and numbers of a folder that is not ours |
"""
