"""What keeps a store safe: backups, verification, takedowns, and an account of what was done."""
