"""Floor 4: templates and tokenizers, rows to ids, the native decoder, policies and scorers, batches."""
