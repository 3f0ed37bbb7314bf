"""ACE-EM: ab initio cryo-EM reconstruction with an asymmetric complementary autoencoder."""

__version__ = "0.1.0"
