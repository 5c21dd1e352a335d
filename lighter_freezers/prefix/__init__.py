"""The output of a frozen prefix of blocks, computed once and stored: keys, rows on disk, refusals."""
