"""The mathematics of RLHF: losses, advantages, KL control and statistics, as pure functions."""
