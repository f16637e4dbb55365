"""Floor 5: sources of reward behind one signature, `bridle.core.records.Reward`."""
