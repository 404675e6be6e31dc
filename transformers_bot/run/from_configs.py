"""The plan that two configs give, without any weights."""

from dataclasses import replace
from typing import Any

from ..architectures.inventory import own_class
from ..planning.planner import Plan, make_plan
from ..request.request import ClassFor, Request, read_call
from ..request.source_class import seen_beside, with_class
from .opening import config_sides


def plan_for(class_for: ClassFor, call: str, source: Any, config: Any, kwargs: dict[str, Any]) -> Plan:
    """The plan for a target class chosen by `class_for`; see `transformers_bot.plan`.

    Args:
        call: the public name of the call, for messages.
    """
    request = Request.of(read_call(call, source, {**kwargs, "config": config}, class_for))
    beside: tuple[str, ...] = ()
    if request.name and class_for is own_class:
        request = with_class(request, fetch=False)
    if request.name and not request.notes:
        beside, notes = seen_beside(request)
        request = replace(request, notes=notes)
    return plan_of(request, beside)


def plan_of(request: Request, beside: tuple[str, ...] = ()) -> Plan:
    """The plan of a request by its configs alone.

    Args:
        beside: names of further tensors in the source's files.
    """
    source_class = own_class(request.source) if request.source.architectures else request.class_for(request.source)
    renew = request.keywords.ignore_mismatched_sizes
    sides = config_sides(request, source_class, beside)
    plan = make_plan(request.adapter, *sides, request.method, renew, request.calibrated)
    return replace(plan, warnings=(*request.notes, *plan.warnings))
