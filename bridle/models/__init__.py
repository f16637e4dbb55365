"""Floor 3: templates and tokenizers, the native decoder, policies and scorers, batches, checkpoints."""
