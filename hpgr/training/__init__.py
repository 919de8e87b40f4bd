"""Losses, the training loop, checkpoints and the two training stages."""
