"""Floor 2: a small language with a known gold rubric and simulated people: the yardstick of every stage."""
