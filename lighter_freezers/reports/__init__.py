"""What a run tells: logger output, CSV files, tables, timeline, rank history, gradient norms, plots."""
