"""A run of `ace-em reconstruct` from its plan to its results."""
