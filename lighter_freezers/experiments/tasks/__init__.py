"""Tasks: a data set and its targets each, and baselines. Nothing here trains."""
