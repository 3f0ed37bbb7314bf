"""Particles: opening, checking, selecting and splitting them, and their images as Fourier coefficients."""
