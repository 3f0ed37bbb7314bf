"""Poses of new particles from the encoder of a finished run, and the confidence of poses."""
