"""Savings as the paper defines them, from curves of (FLOPs, metric).

    saving = (phi_scratch - phi_method) / phi_scratch

phi is the training FLOPs at which a run first reaches the metric: the one that scratch reaches within its budget.
The FLOPs of fitting a learned operator and of a teacher's forward passes are in the curve already.
"""

from collections.abc import Sequence

Curve = Sequence[tuple[float, float]]  # (training FLOPs so far, metric), the first point before any training


def best(curve: Curve, higher: bool) -> float:
    """The best value on the curve."""
    values = [value for _, value in curve]
    return max(values) if higher else min(values)


def reached(curve: Curve, target: float, higher: bool) -> float | None:
    """FLOPs at which the curve first reaches `target`, linear between evaluations; None if it never does.

    >>> reached([(0, 4.0), (10, 3.0), (20, 2.0)], 2.5, higher=False)
    15.0
    """
    sign = 1.0 if higher else -1.0
    for place, (flops, value) in enumerate(curve):
        if sign * value >= sign * target:
            if place == 0:
                return float(flops)
            before_flops, before = curve[place - 1]
            return before_flops + (flops - before_flops) * (target - before) / (value - before)
    return None


def saving(reference: float, phi: float) -> float:
    """The share of `reference` FLOPs that is saved; negative if more was spent.

    >>> saving(200.0, 50.0)
    0.75
    """
    if reference <= 0:
        raise ValueError(f"the reference needs FLOPs of its own to be compared with, got {reference}.")
    return (reference - phi) / reference


def saving_against(scratch: Curve, curve: Curve, higher: bool) -> tuple[float | None, float | None]:
    """(saving, bound) of a curve against scratch's; exactly one of them is a number.

    The bound is given where the curve never reaches scratch's best: its saving is below what it would be if
    it got there at its last evaluation. Both are None if scratch itself never improves on its first weights.
    """
    target = best(scratch, higher)
    reference = reached(scratch, target, higher)
    if not reference:  # nothing was gained by training, so there is nothing to save
        return None, None
    phi = reached(curve, target, higher)
    if phi is None:
        return None, saving(reference, curve[-1][0])
    return saving(reference, phi), None
