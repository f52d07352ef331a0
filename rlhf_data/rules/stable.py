"""Functions of a tensor that keep their digits, and stay finite, where the textbook formula would not."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MOST_NATS = 60.0  # where a log-ratio is exponentiated it counts as at most so many nats: e⁶⁰ is finite in every dtype
LEAST_NATS = 1e-7  # a mean log-prob counts as at least so far below 0: 1 − P stays a number


def softplus(x: "Tensor") -> "Tensor":
    """log(1 + eˣ), which is −log σ(−x)."""
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


def slope(x: "Tensor") -> "Tensor":
    """σ'(x), exact in both tails: 1 − σ(x) would round to 0 where σ(−x) is still a number."""
    return x.sigmoid() * (-x).sigmoid()


def bounded_exp(x: "Tensor") -> "Tensor":
    """eˣ, for x up to MOST_NATS."""
    return x.clamp(max=MOST_NATS).exp()


def log1mexp(x: "Tensor") -> "Tensor":
    """log(1 − eˣ) for x < 0, by the form that does not cancel on either side of −ln 2."""
    near, far = (-(x.clamp(min=-1).expm1())).log(), (-x.exp()).log1p()
    return near.where(x > -0.6931471805599453, far)
