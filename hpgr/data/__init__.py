"""The sessionized log: sessions, vocabulary, splits, batches."""
