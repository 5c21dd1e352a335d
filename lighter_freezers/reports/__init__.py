"""Reports of a run: logger output, CSV files, tables, timeline, rank history, gradient norms, plots."""
