"""Floor 10: `bridle sweep`, settings beside one another over the same seeds, each run an ordinary run in an ordinary project."""
