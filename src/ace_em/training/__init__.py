"""Stage 1: training of encoder and decoder."""
