"""A model judges answers: what it is asked, how its replies are read, who answers, and what its verdicts are worth."""
