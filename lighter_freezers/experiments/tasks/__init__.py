"""Texts and what is asked about them: corpora, tokenizer, windows, baselines. Nothing here trains."""
