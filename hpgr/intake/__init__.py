"""From raw files to the validated log: fetch, read, check against the contract, take in batches."""
