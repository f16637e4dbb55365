"""How good is it: win rates, the reward-KL frontier, tests of reward models, and the report."""
