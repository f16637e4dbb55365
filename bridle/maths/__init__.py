"""Floor 1: the mathematics of RLHF: losses, advantages, KL control and statistics, as pure functions."""
