"""Tasks: each is a data set and its targets. Nothing here trains."""
