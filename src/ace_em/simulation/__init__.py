"""Ground truth (appendix B): structures, densities, particle stacks; from atoms never made with the decoders they will judge."""
