"""Prefect flows: thin orchestration of the DVC stages."""
