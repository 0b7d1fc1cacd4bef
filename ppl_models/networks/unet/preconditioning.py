"""A U-Net's decoder as a correction of a first guess, and the ResNet that this makes of it.

Williams et al., NeurIPS 2023, arXiv 2305.19638: a residual operator is ``R_res(v) = R_pre(v) + R(v)``, a good first
guess ``R_pre`` and a learned correction.  With decoders ``D_i(w | e) = D_pre_i(w) + D_i'(w | e)``, for e = E_i v,

    U_i = R_i o E_i,     R_i(e) = D_pre_i(U_{i-1}(P_{i-1} e)) + D_i'(U_{i-1}(P_{i-1} e) | e),

so the preconditioner of resolution i is the U-Net of resolution i - 1.  A denoiser ``c_skip x + c_out F(x)`` (Karras et
al., 2022, arXiv 2206.00364) is the same idea with ``R_pre(x) = c_skip x``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import nnx

from ppl_models.networks.separable import upsample
from ppl_models.networks.unet.operator import Part, UNetOperator


class Embed(nnx.Module):
    """``D_pre``: images constant on the cells of W_{i-1} as elements of the finer W_i; each pixel repeated 2 x 2."""

    def __call__(self, w: Any) -> Any:
        return upsample(w)


class Preconditioned(nnx.Module):
    """The decoder ``D(w | e) = pre(w) + correction(w, e, c)``."""

    def __init__(self, pre: Part, correction: Part) -> None:
        self.pre, self.correction = pre, correction

    def __call__(self, w: Any, e: Any, c: Any = None) -> Any:
        return self.pre(w) + self.correction(w, e, c)


class ResNetForm(NamedTuple):
    """``R(e) = first_guess(e) + correction(e)``, both functions of ``e = E_i v`` and the condition."""

    first_guess: Part
    correction: Part

    def __call__(self, e: Any, condition: Any = None) -> Any:
        """``R(e)``."""
        return self.first_guess(e, condition) + self.correction(e, condition)


def precondition(unet: UNetOperator, pre: Part | None = None) -> UNetOperator:
    """The same U-Net with every decoder as a correction of ``pre`` (default: the coarse answer, repeated).

    The spaces W_{i-1} and W_i need the same number of channels unless ``pre`` changes it.
    """
    guess = Embed() if pre is None else pre
    return unet.replace(
        decoders=[d if isinstance(d, Preconditioned) else Preconditioned(guess, d) for d in unet.decoders]
    )


def resnet_form(unet: UNetOperator) -> ResNetForm:
    """``R_L`` with ``U_L = R_L o E_L``.  Raises ``ValueError`` where the finest decoder is no correction."""
    if not unet.depth or not isinstance(unet.decoders[-1], Preconditioned):
        raise ValueError("the finest decoder must be Preconditioned(pre, correction); use precondition(unet) first")
    decoder, below = unet.decoders[-1], unet.at(unet.depth - 1)

    def first_guess(e: Any, condition: Any = None) -> Any:
        return decoder.pre(below(*unet.project(unet.depth, e, condition)))

    def correction(e: Any, condition: Any = None) -> Any:
        coarse = below(*unet.project(unet.depth, e, condition))
        return decoder.correction(coarse, e, unet.context(unet.depth, condition))

    return ResNetForm(first_guess, correction)
