"""Floor 5: sampling from a distribution, the engine that answers prompts in batches, a step's rollout."""
