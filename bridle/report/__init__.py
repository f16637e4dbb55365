"""Floor 9: pages of a project and of a run."""
