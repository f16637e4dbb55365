"""What is served, and what users say of it."""
