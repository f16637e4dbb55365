"""Floor 7: how good it is: answers to held-out prompts, KL and proxy, tests of reward models."""
