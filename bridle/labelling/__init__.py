"""The labelling app: people compare answers in the browser, and owners see what comes of it."""
