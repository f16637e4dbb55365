"""What the rows of others say, form by form."""
