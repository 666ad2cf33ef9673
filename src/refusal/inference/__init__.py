"""The inference stage: run the prompts, keep activations and answers, say what the model did.

| module | what it knows |
|---|---|
| `stage` | the stage: prompts to shards, shards to an index, and who does which part |
| `answer_prefix` | tokens that every answer begins with, moved into the prompts |
| `behaviour` | from stored answers to labels, outputs and rates |
| `background` | writing one shard while the next one runs |

How a batch goes through a model is in `refusal.capture`, how large it is in `refusal.batches`.
"""
