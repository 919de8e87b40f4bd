"""Measure models, speed and drift: a matrix of cells, one script a table, committed results."""
