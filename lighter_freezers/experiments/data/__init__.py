"""Texts, labels and prompts: read, encoded, cut into batches."""
