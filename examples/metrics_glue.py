"""GLUE's metrics in numpy: accuracy, F1, Matthews, Pearson and Spearman correlation.

Each takes predictions and references, arrays of equal length, and gives a number; `METRICS` names them.
A correlation with something constant is not defined and counts as 0.
"""

from collections.abc import Callable

import numpy
from numpy import ndarray


def accuracy(predicted: ndarray, wanted: ndarray) -> float:
    """Share of equal labels."""
    return float(numpy.mean(predicted == wanted))


def f1(predicted: ndarray, wanted: ndarray) -> float:
    """Harmonic mean of precision and recall of label 1; 0 where no label 1 was found."""
    found = numpy.sum((predicted == 1) & (wanted == 1))
    total = numpy.sum(predicted == 1) + numpy.sum(wanted == 1)
    return float(2 * found / total) if total else 0.0


def matthews(predicted: ndarray, wanted: ndarray) -> float:
    """Matthews correlation of two-valued labels, which is their Pearson correlation (1975)."""
    return pearson(predicted, wanted)


def pearson(predicted: ndarray, wanted: ndarray) -> float:
    """Covariance over the product of the standard deviations."""
    a, b = (values.astype(numpy.float64) - numpy.mean(values, dtype=numpy.float64) for values in (predicted, wanted))
    scale = numpy.sqrt(a @ a) * numpy.sqrt(b @ b)
    return float(a @ b / scale) if scale else 0.0


def spearman(predicted: ndarray, wanted: ndarray) -> float:
    """Pearson correlation of the ranks."""
    return pearson(ranks(predicted), ranks(wanted))


def ranks(values: ndarray) -> ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, which, counts = numpy.unique(values, return_inverse=True, return_counts=True)
    last: ndarray = numpy.cumsum(counts)[which]
    return last - (counts[which] - 1) / 2


METRICS: dict[str, Callable[[ndarray, ndarray], float]] = {
    function.__name__: function for function in (accuracy, f1, matthews, pearson, spearman)
}
