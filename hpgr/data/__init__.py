"""The log: fetch, validate, cut into sessions, read in batches."""
