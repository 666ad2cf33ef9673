"""SAEs as other libraries write them: who wrote a file (`find_format`), and its SAE as one of ours (`load_any`).

1. `found`: the name of the weights file says which library it was;
2. `gemma_scope`, `dictionary_learning`, `sparsify`: a reader per library reads the configuration beside it as JSON, and
   weights without running code (`refusal.sae.weight_files`);
3. `shared`: tensors get our names and orientation ([d_model, d_sae] and [d_sae, d_model]), and scalar thresholds become
   vectors;
4. an option that changes what `encode` means and that no class here has is an error that names it.

`load_any(path).encode` is what the library's own class computes. Weights stay as they are: decoder rows that are not of
unit norm are not rescaled, so latents are in the library's units. This package does not know what SAEs are used for or
where they come from: `refusal.sae.pretrained` does.

Sources: dictionary_learning 60ec6bf (`dictionary.py`, `trainers/`); sparsify 1.3.0 (`sparse_coder.py`); Gemma Scope,
2408.05147, section 2, and the model cards of Gemma Scope 2; SAELens 6.54 (`refusal.sae.formats` reads its folders).
"""

from refusal.sae.foreign.found import FILES, FoundSae, SaeFormat, find_format
from refusal.sae.foreign.reading import load_any

__all__ = ["FILES", "FoundSae", "SaeFormat", "find_format", "load_any"]
