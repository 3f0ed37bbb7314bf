"""Simulated data with ground truth (appendix B): structures, densities, particle stacks.

Projections of atoms are computed in closed form, independently of the projectors of the decoders that they test.
"""
