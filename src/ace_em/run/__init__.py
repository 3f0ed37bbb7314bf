"""A run of ``ace-em reconstruct``: plan, stages, checkpoints, results."""
