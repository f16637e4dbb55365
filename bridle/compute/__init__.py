"""Floor 3: what training asks of the machine: device, ranks, optimisers, checkpoints, the steps of a loop."""
