"""Monitor the champion in use: data drift, age, metrics over time."""
