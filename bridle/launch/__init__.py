"""Starting the processes that share a training."""
