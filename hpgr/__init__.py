"""HPGR: train, judge and ship session-aware generative recommenders."""

__version__ = "0.1.0"
