"""As much of a tensor as rules use, over numpy: weights of a million rows in less time than torch takes to load.

An Array is a stack of equal batches: its values are (batches, …) and a rule sees the … only, so a sum is over each
batch by itself. A rule over one batch is a stack of one.
"""

from typing import Any

import numpy as np


class Array:
    """Values (batches, …); every method means what torch's means, within each batch."""

    __slots__ = ("values",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape[1:]

    @property
    def ndim(self) -> int:
        return self.values.ndim - 1

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def T(self) -> "Array":  # noqa: N802  (torch's name)
        return Array(self.values.swapaxes(1, 2))

    def __len__(self) -> int:
        return self.values.shape[1]

    def __getitem__(self, at: Any) -> "Array":
        return Array(self.values[(slice(None), *(at if isinstance(at, tuple) else (at,)))])

    def __neg__(self) -> "Array":
        return Array(-self.values)

    def __invert__(self) -> "Array":
        return Array(~self.values)

    def sigmoid(self) -> "Array":
        return Array(1 / (1 + np.exp(-self.values)))

    def exp(self) -> "Array":
        return Array(np.exp(self.values))

    def expm1(self) -> "Array":
        return Array(np.expm1(self.values))

    def log(self) -> "Array":
        return Array(np.log(self.values))

    def log1p(self) -> "Array":
        return Array(np.log1p(self.values))

    def sqrt(self) -> "Array":
        return Array(np.sqrt(self.values))

    def tanh(self) -> "Array":
        return Array(np.tanh(self.values))

    def abs(self) -> "Array":
        return Array(np.abs(self.values))

    def sign(self) -> "Array":
        return Array(np.sign(self.values))

    def square(self) -> "Array":
        return Array(self.values * self.values)

    def clamp(self, min: Any = None, max: Any = None) -> "Array":
        made = self if min is None else self.maximum(min)
        return made if max is None else made.minimum(max)

    def maximum(self, other: Any) -> "Array":
        return self._with(np.maximum, other)

    def minimum(self, other: Any) -> "Array":
        return self._with(np.minimum, other)

    def where(self, condition: "Array", other: Any) -> "Array":
        a, b = _aligned(condition, self)
        c = _aligned(other, Array(a))[0]
        return Array(np.where(a, b, c))

    def sum(self, dim: int | None = None, keepdim: bool = False) -> "Array":
        return Array(self.values.sum(axis=self._axes(dim), keepdims=keepdim))

    def mean(self, dim: int | None = None, keepdim: bool = False) -> "Array":
        return Array(self.values.mean(axis=self._axes(dim), keepdims=keepdim))

    def cumsum(self, dim: int) -> "Array":
        return Array(self.values.cumsum(axis=self._axes(dim)))

    def to(self, dtype: Any) -> "Array":
        return Array(self.values.astype(dtype, copy=False))

    def double(self) -> "Array":
        return self.to(np.float64)

    def detach(self) -> "Array":
        return self

    def new_ones(self, shape: tuple[int, ...]) -> "Array":
        return Array(np.ones((len(self.values), *shape), self.values.dtype))

    def new_zeros(self, shape: tuple[int, ...]) -> "Array":
        return Array(np.zeros((len(self.values), *shape), self.values.dtype))

    def new_tensor(self, value: float) -> "Array":
        return Array(np.full(len(self.values), value))

    def _axes(self, dim: int | None) -> Any:
        if dim is None:
            return tuple(range(1, self.values.ndim))
        return dim + 1 if dim >= 0 else dim

    def _with(self, function: Any, other: Any, *, reverse: bool = False) -> "Array":
        a, b = _aligned(self, other)
        return Array(function(b, a) if reverse else function(a, b))

    def bool(self) -> "Array":  # the last: below it `bool` is this
        return self.to(np.bool_)


def _aligned(one: Any, other: Any) -> tuple[Any, Any]:
    """The values of two operands, axes added behind the batches so that the shapes within them broadcast."""
    a, b = (x.values if isinstance(x, Array) else x for x in (one, other))
    if isinstance(one, Array) and isinstance(other, Array) and a.ndim != b.ndim:
        wide = max(a.ndim, b.ndim)
        a, b = (x.reshape(x.shape[0], *[1] * (wide - x.ndim), *x.shape[1:]) for x in (a, b))
    return a, b


def _operator(function: Any, *, reverse: bool = False) -> Any:
    return lambda self, other: self._with(function, other, reverse=reverse)


for _name, _function in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "pow": np.power,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}.items():  # fmt: skip
    setattr(Array, f"__{_name}__", _operator(_function))
    setattr(Array, f"__r{_name}__", _operator(_function, reverse=True))
for _name, _function in {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}.items():  # fmt: skip
    setattr(Array, f"__{_name}__", _operator(_function))
