"""Floor 1: every setting, validated and frozen."""
