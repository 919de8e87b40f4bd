"""The additive attention: which pairs are computed, how, and the one entry that networks call."""
