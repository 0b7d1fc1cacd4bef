"""Flax NNX parts that several families plug in.  They know nothing of NumPyro."""
