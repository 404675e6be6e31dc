"""Runs all open trainings of a suite, in order, on several processes."""

import datetime
import multiprocessing
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import building
import tasks
import torch
import train
from building import Places
from store import DONE, FAILED, REFUSED, Store, chosen_rate, final
from suite import Method, Run, Setting, search_runs, seed_runs, step0_runs
from transformers.utils import logging

import transformers_bot
from transformers_bot import BoTError

Say = Callable[[str], None]


def execute(run: Run, places: Places) -> dict[str, Any]:
    """The outcome of one run: its curve, or the reason why there is none.

    A method that cannot do the task raises a `BoTError`; the outcome is "refused". A method name or option that
    does not exist, and every other exception, is "failed".
    """
    start = time.perf_counter(), time.process_time()
    try:
        building.seeded_options(run.method, run.seed)
    except BoTError as error:
        return _ended(FAILED, start, reason=f"{type(error).__name__}: {error}")
    try:
        building.plan(run, places)
    except BoTError as error:
        return _ended(REFUSED, start, reason=str(error))
    try:
        return _ended(DONE, start, **_trained(run, places))
    except Exception as error:  # recorded with its reason; run.py ends with status 1
        return _ended(FAILED, start, reason=f"{type(error).__name__}: {error}", trace=traceback.format_exc(limit=-4))


def _trained(run: Run, places: Places) -> dict[str, Any]:
    if places.device == "cuda":
        torch.set_float32_matmul_precision("high")
    task = tasks.load(run.setting.task, places.data, places.cache)
    model, fit_flops = building.target(run, task, places)
    found: dict[str, Any] = {"fit_flops": fit_flops, "higher": task.higher}
    made = getattr(model.config, "transformers_bot", {})  # the choices of "auto", for readers of the JSON
    found["made"] = {name: value for name, value in made.items() if name not in ("source", "revision", "versions")}
    found["device"] = places.device
    found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if run.rate is None and task.probe is not None:
        found["probe"] = {name: round(value, 6) for name, value in task.probe(model.eval()).items()}
    teacher = building.teacher(run, task, places)
    rate = run.rate or 0.0
    found.update(train.loop(model, task, run.budget, rate, run.seed, teacher, run.method.teacher, fit_flops))
    return found


def _ended(status: str, start: tuple[float, float], **more: Any) -> dict[str, Any]:
    wall, busy = time.perf_counter() - start[0], time.process_time() - start[1]
    took = {"seconds": round(wall, 1), "cpu_seconds": round(busy, 1), "version": transformers_bot.__version__}
    return {"status": status, **took, "date": datetime.date.today().isoformat(), **more}


def prepare(settings: list[Setting], places: Places, pool: Executor, say: Say) -> None:
    """Train every source that the settings need and the cache does not have."""
    specs = {str(setting.source_spec): setting.source_spec for setting in settings}
    for future in [pool.submit(building.train_source, spec, places) for spec in specs.values()]:
        future.result()
    for setting in settings:
        say(f"{setting.name}: source {setting.source} in {building.source_folder(setting.source_spec, places)}")


def work(settings: list[Setting], store: Store, places: Places, pool: Executor, workers: int, say: Say) -> None:
    """Run all open runs, the rate search of a method before its other seeds, and store every outcome."""
    waiting: deque[Run] = deque()
    searched: list[tuple[Setting, Method]] = []
    for setting in settings:
        waiting.extend(run for run in step0_runs(setting) if not store.finished(run))
        for method in setting.methods:
            searched.append((setting, method))
            waiting.extend(run for run in search_runs(setting, method) if not store.finished(run))
    open_keys = {run.key for run in waiting}
    total, flying = len(waiting), dict[Future[dict[str, Any]], Run]()
    done = 0
    while True:
        for setting, method in [pair for pair in searched if not open_keys & {r.key for r in search_runs(*pair)}]:
            searched.remove((setting, method))
            more = _other_seeds(store, setting, method)
            waiting.extendleft(reversed(more))
            total += len(more)
        while waiting and len(flying) < workers:
            run = waiting.popleft()
            flying[pool.submit(execute, run, places)] = run
        if not flying:
            return
        for future in wait(flying, return_when=FIRST_COMPLETED).done:
            run, outcome = flying.pop(future), future.result()
            store.add(run, outcome)
            open_keys.discard(run.key)
            done += 1
            say(f"[{done}/{total}] {run}: {_summary(run, outcome)}")


def _other_seeds(store: Store, setting: Setting, method: Method) -> list[Run]:
    runs = search_runs(setting, method)
    first = store.outcome(runs[0])
    if first is None or first["status"] != DONE:
        return []
    rate = chosen_rate(store, runs, setting.metric, first["higher"][setting.metric])
    if rate is None:
        return []
    return [run for run in seed_runs(setting, method, rate) if not store.finished(run)]


def _summary(run: Run, outcome: dict[str, Any]) -> str:
    if outcome["status"] != DONE:
        return f"{outcome['status']}: {outcome['reason']}"
    metric = run.setting.metric
    first, last = outcome["curve"][0][metric], final(outcome, metric)
    return f"{metric} {first:.4f} -> {last:.4f}, {outcome['seconds']} s"


@contextmanager
def pool_of(workers: int, threads: int) -> Iterator[Executor]:
    """Processes for several runs at a time, or this process for one."""
    if workers == 1:
        _quiet(threads)
        yield Inline()
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang on its thread pools
    pool = ProcessPoolExecutor(workers, context, initializer=_quiet, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Inline(Executor):
    """Runs a job in this process when it is submitted."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _quiet(threads: int) -> None:
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
