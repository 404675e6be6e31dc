"""Readers fitted to what a low-pass keeps, by least squares on the moments of what they read.

Of its input y a matrix W will only see R y. The dual map C reads that as if nothing was known of y;
with its mean and covariance known, the best reader of R y is W A, with

    A = Cov(y, R y) Cov(R y)^-1,    b <- b + W (mean - A R mean),

and without a bias second moments in place of covariances. R A = I holds, so what R keeps of y is
read as before. Here the readers are rewritten at the source's size, W <- W A R, of which the map C
of the resize then takes W A, because R C^T = I.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..architectures.axes import At, Factor, Rule
from ..console import progress
from ..ops.axis_map import AxisMap, Matrix, identity
from .moments import Moments
from .network import Network, NormPlace

# Of the mean kept variance: directions that the batches do not show are read by C, as without data.
RIDGE = 1e-3
FEW = 0.1  # as much again for every unit that is kept and token that was seen, m / tokens: few tokens tell little
MapsOf = Callable[[tuple[Factor, ...]], tuple[AxisMap, AxisMap]]  # factors of an axis -> R, C


def input_axis(rule: Rule) -> tuple[int, tuple[Factor, ...]] | None:
    """Which axis of a matrix is its module's input, and its factors; None for tables and vectors."""
    for dim, axis in enumerate(rule.axes):
        factors = [factor for segment in axis.segments for factor in segment]
        if rule.maps and len(axis.segments) == 1 and all(factor.reads for factor in factors):
            return dim, axis.segments[0]
    return None


def refit_readers(network: Network, seen: Mapping[str, Moments], maps_of: MapsOf) -> None:
    """Fit every matrix of `seen` to what the low-pass leaves of its input.

    A tied output embedding has to stay what the input embedding is: its bias alone takes over what
    the mean loses, mean - C^T R mean.

    Args:
        seen: name of a matrix -> moments of its input, in the order and basis of the stored tensors.
        maps_of: the maps R and C of the factors of an axis.
    """
    fitted: dict[tuple[int, bool], tuple[AxisMap, Tensor]] = {}  # queries, keys and values read the same
    sizes = [float(len(moments.mean)) ** 3 for moments in seen.values()]
    for name, moments in progress.tracked(seen.items(), sizes, [f"fitting {name}" for name in seen]):
        place = network.places[name]
        found = input_axis(place.rule)
        maps = maps_of(found[1]) if found else (identity(0), identity(0))
        bias = network.find(f"{place.stem}.bias", place.layer)
        if found is None or maps[0].is_identity or (name in network.tied and bias is None):
            continue
        dim, factors = found
        now = moments.mapped(_moved(network, factors, place.at))
        if name in network.tied:
            mean = now.mean
            lost = mean - torch.from_numpy(maps[1].dense().T @ maps[0].dense()) @ mean
        else:
            key = (id(moments), bias is None)
            fitted[key] = fitted.get(key) or _fit(now if bias else now.uncentred(), *maps)
            through, lost = fitted[key]
        if bias is not None:
            shift = torch.tensordot(network[name].double(), lost, dims=([dim], [0]))
            for one in network.names_of(bias):
                network.edit(one, lambda x, shift=shift: x + shift.reshape(x.shape).to(x))  # type: ignore[misc]
        if name not in network.tied:
            network.edit(name, lambda x, through=through, dim=dim: through.apply(x, dim))  # type: ignore[misc]


def match_norm_scale(network: Network, place: NormPlace, seen: Moments, low_pass: Tensor) -> None:
    """Give a norm that stays as it is (post-norm) the scale and shift of a stream of fewer units.

    Over the units R x of a normalised stream x a norm finds the variance rho^2 and the mean mu; it
    returns (R x - mu) / rho, so gamma <- rho gamma and beta <- beta + gamma mu bring back R x.
    """
    units = seen.mapped(low_pass)
    second = units.uncentred().covariance
    mean = float(units.mean.mean())
    rho = float((second.trace() / len(second) - second.mean()).clamp_min(0).sqrt())
    shift = place.part(network, "bias")
    if shift is not None:
        gamma = place.gamma(network)
        network.edit(shift, lambda x: x + mean * gamma.to(x))
    place.set_gamma(network, lambda x: x * rho)


def _fit(seen: Moments, kept: AxisMap, dual: AxisMap) -> tuple[AxisMap, Tensor]:
    """The map of a read axis, W -> W A R, and what the bias takes over, mean - A R mean."""
    low_pass = torch.from_numpy(kept.dense())  # (target, source): R
    cross = seen.covariance @ low_pass.T  # (source, target)
    within = low_pass @ cross
    few = FEW * len(within) / seen.tokens if seen.tokens else 0.0
    ridge = (RIDGE + few) * within.diagonal().mean().clamp_min(1e-300) * torch.eye(len(within), dtype=within.dtype)
    read = torch.linalg.solve(
        within + ridge, (cross + torch.from_numpy(dual.dense()).T @ ridge).T
    )  # (target, source): A^T
    through = AxisMap(kept.source, kept.target, (Matrix(read.numpy()),)).then(kept.transposed())
    return through, seen.mean - read.T @ (low_pass @ seen.mean)


def _moved(network: Network, factors: tuple[Factor, ...], at: At) -> Tensor:
    """From the stored order of an axis to the one that the edits so far have given it."""
    whole = np.ones((1, 1))
    for factor in factors:
        length = network.sizes[factor.role] if factor.role else factor.size
        whole = np.kron(whole, network.moved(factor.role, at).dense() if factor.role else np.eye(length or 1))
    return torch.from_numpy(whole)
