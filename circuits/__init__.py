"""From latents to the verdict: circuits of sparse features, how alike they are, and what that says about refusal."""
