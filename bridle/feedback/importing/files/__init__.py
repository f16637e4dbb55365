"""Files of others as numbered rows: what a file is, how it is packed and encoded, and a reader for each kind."""
