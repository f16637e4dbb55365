"""The chat page of `bridle serve`, and what its users agree to, compare and say."""
