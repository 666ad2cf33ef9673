"""How activations lie on disk: shards of prompts, each a safetensors file with a JSON row file, and an index.

```
activations/MODEL/shard-00000.safetensors   readout/SITE [prompt, width], first_token/{ids,logits,logsumexp},
                                            mean/SITE and -2/SITE ... where means or offsets from the end are kept
activations/MODEL/shard-00000.json          plan, prompt ids, responses, checksum: written last, so it says "complete"
activations/MODEL/index.json                sites, dtype, shapes, every shard's prompt ids and checksum
activations/MODEL/positions-00000.safetensors   where all positions are kept: those before the readout position
```

The files that hold checksums hold one of themselves. What a file of positions holds is in `refusal.positions`. This
package does not know models or labels.

| module | what it knows |
|---|---|
| `records` | what is kept of prompts, and the names of files and tensors |
| `writer` | `ActivationWriter`: shards as they come, the index at the end |
| `reader` | `ActivationStore`: what is there, believed only when its checksum fits |
"""

from refusal.store.reader import ActivationStore
from refusal.store.records import Answer, Shard, Source, TopLogits
from refusal.store.writer import ActivationWriter, noted_prefix

__all__ = ["ActivationStore", "ActivationWriter", "Answer", "Shard", "Source", "TopLogits", "noted_prefix"]
