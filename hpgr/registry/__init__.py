"""MLflow: runs, versions, aliases and lineage."""
