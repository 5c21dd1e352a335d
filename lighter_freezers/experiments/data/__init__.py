"""Texts, labels and prompts: read, encoded, batched."""
