"""The flywheel: what is served, what is learnt from its users, and what takes its place only with proof."""
