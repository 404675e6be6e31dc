"""The plan that two configs give, without any weights."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig

from .. import architectures
from ..architectures.inventory import own_class
from ..planning.planner import Plan, make_plan
from ..request.request import ClassFor, Request, check_numbers, init_keywords, read_call, sort_keywords, source_name
from ..request.source_class import seen_beside, with_class
from .opening import config_sides


def plan_for(class_for: ClassFor, source: Any, config: Any, kwargs: dict[str, Any]) -> Plan:
    """The plan for a target class chosen by `class_for`; see `transformers_bot.plan`."""
    keywords = {**kwargs, "config": config}
    beside: tuple[str, ...] = ()
    if isinstance(source, PreTrainedConfig):
        check_numbers({"config": source})
        name, adapter = "", architectures.get(source.model_type)
        said = sort_keywords(keywords, init_keywords(class_for(source)))
    else:
        name = source_name(source)
        source, adapter, said = read_call(name, keywords, class_for)
    request = Request.of(name, source, adapter, said, class_for)
    if name and class_for is own_class:
        request = with_class(request, fetch=False)
    if name and not request.notes:
        beside, notes = seen_beside(request)
        request = replace(request, notes=notes)
    source_class = own_class(request.source) if request.source.architectures else class_for(request.source)
    renew = request.keywords.ignore_mismatched_sizes
    sides = config_sides(request, source_class, beside)
    plan = make_plan(request.adapter, *sides, request.method, renew, request.calibrated)
    return replace(plan, warnings=(*request.notes, *plan.warnings))
