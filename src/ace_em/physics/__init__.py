"""Image formation (appendix E of the paper). Nothing here is learnt."""
