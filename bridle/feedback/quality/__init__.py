"""The quality of labels: agreement, skill and side bias of each person, consensus, weights. Numpy alone."""
