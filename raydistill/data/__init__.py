"""Rows: read from any source, split, tokenised, and cut into batches that do not depend on the workers."""
