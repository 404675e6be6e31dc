"""The discrete cosine transform as a low-pass between any two lengths.

Written here in four lines because the matrix is what is needed, not the transform of a signal; scipy, which has the
latter, is not among the dependencies.
"""

import numpy as np


def dct(length: int, kept: int | None = None) -> np.ndarray:
    """The orthonormal DCT-II as a (frequency, entry) matrix; only the `kept` lowest frequencies if that is given."""
    frequency, entry = np.arange(length if kept is None else kept)[:, None], np.arange(length)[None]
    waves = np.cos(np.pi * frequency * (2 * entry + 1) / (2 * length)) * np.sqrt(2 / length)
    waves[0] /= np.sqrt(2)
    return np.asarray(waves)


def low_frequencies(source: int, target: int) -> np.ndarray:
    """The (target, source) matrix that keeps the frequencies which both lengths have."""
    kept = min(source, target)
    return np.asarray(dct(target, kept).T @ dct(source, kept))
