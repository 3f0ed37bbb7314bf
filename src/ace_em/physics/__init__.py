"""Image formation (appendix E of the paper), without learnt parts."""
