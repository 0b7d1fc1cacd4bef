"""What is modelled: families of deep generative models as NumPyro programs, with their parts and data."""
