"""bridle: the whole RLHF loop in one readable package. `docs/map.md` shows where everything is."""

__version__ = "0.1.0"
