"""Floor 7: one readable file for each way of training."""
