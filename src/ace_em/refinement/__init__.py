"""Stages 2 and 3: pose search, local refinement, back-projection, half-sets."""
