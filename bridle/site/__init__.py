"""What every page of bridle shares: who looks at it, in which language, and what a browser may do with it."""
