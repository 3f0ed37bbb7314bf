"""Poses from a finished run's encoder, and how probable they are."""
