"""Training: from batches of tokens to weights, in runs that can be stopped and taken up again."""
