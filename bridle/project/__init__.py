"""Floor 2: a project on disk and its runs: lock, metrics, progress, profile."""
