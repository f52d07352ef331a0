"""Sums by index, the same whatever the number of threads."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def sums(index: Ints, values: Floats, n: int) -> Floats:
    """The sum of the values of each index from 0 to n − 1, added in the order of values; (n,).

    >>> sums(np.array([1, 1]), np.array([2.0, 3.0]), 3).tolist()
    [0.0, 5.0, 0.0]
    """
    return np.bincount(index, values, minlength=n).astype(np.float64, copy=False)  # of nothing it gives integers
