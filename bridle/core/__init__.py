"""Floor 0: errors, records, files, where the time goes. Loads nothing heavy, and knows nothing of projects."""
