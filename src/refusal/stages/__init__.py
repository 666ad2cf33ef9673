"""Units of work that resume: what is up to date, why something is not, and the record each unit leaves.

A unit is one stage for one model (or, for the report, for all). Its fingerprint covers the configuration keys it
depends on, its input files and the outputs of the units before it. When a unit is done it writes its record last:
outputs with checksums, time, memory, warnings, versions. A unit whose record fits is skipped; a killed one has no
record and runs again.

Looking at what is done is quick: large files are believed by size and time of change. Before a unit runs, every file
that it may read is compared with the checksum that the unit which wrote it has recorded; what does not fit is made anew
where its stage is asked for, and else told. The largest, positions of all prompts, the store compares as it reads them.

| module | what it knows |
|---|---|
| `units` | `Unit`: one stage for one model, and which units need which |
| `pipeline` | `Pipeline`: what is up to date, what runs, the records and the manifest |
| `changes` | what changed since a record was written, in words |
| `surroundings` | versions and warnings, as records note them |
| `signatures` | what tells a file from a changed one |
| `run_lock` | the result folder: one run at a time, room on the disk, no links out of it |
"""

from refusal.stages.pipeline import Pipeline
from refusal.stages.surroundings import collected_warnings, versions
from refusal.stages.units import State, Unit

__all__ = ["Pipeline", "State", "Unit", "collected_warnings", "versions"]
