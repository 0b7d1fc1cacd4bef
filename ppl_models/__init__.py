"""What is modelled: families of deep generative models as NumPyro programs, with their parts and data."""

from ppl_models._clash import check_inference as _check_inference

_check_inference()
