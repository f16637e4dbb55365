"""Floor 6: sources of reward behind one signature, `bridle.core.records.Reward`."""
