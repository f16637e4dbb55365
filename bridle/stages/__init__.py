"""Floor 8: each stage of the loop as a function of a project."""
