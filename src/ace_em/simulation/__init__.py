"""Ground truth (appendix B): structures, densities and particle stacks, never made with the decoders they will judge."""
