"""What lies in a model's folder or file: found, looked at, read, and written again as its makers meant it."""
