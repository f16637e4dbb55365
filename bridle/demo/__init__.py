"""Floor 10: the demo, the whole loop once on the playground."""
