"""Floor 0: errors, records, the recipe and the run log. Loads neither torch nor anything heavy."""
