"""Floor 4: sampling from a distribution, and the engine that answers prompts in batches."""
