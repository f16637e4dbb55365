"""Floor 2: what people (or models) said of answers. The store, what rankings mean, and files of others."""
