"""Files of others, read row by row into the store."""
