"""From a history and a request time to recommended items."""
