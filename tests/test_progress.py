"""One bar for a call: from its first moment to its end, forward only, and without any effect on results."""

import contextlib
import gc
import io
import threading

import pytest
import torch
from families import resized_config
from learned import grow, labelled
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import transformers_bot as bot
from transformers_bot.console import progress
from transformers_bot.console.progress import logger
from transformers_bot.tools.inspecting import inspect

SMALL = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_inner": 16}
BATCHES = [{"input_ids": (torch.arange(40).reshape(4, 10) + i) % 23} for i in (0, 1, 2)]
OPENED = ["reading the configs", "checking the source", "opening the source", "looking for NaN and infinity"]
REWRITTEN = ["finding the order of MLP units", "finding the order of heads", "finding the basis"]


class Recorder:
    """A bar that keeps what it was told."""

    def __init__(self, *_args, total=None, desc="", **_look) -> None:
        self.total, self.n, self.leave, self.closed = total, 0.0, True, 0
        self.words, self.seen = desc.strip(), [(0.0, desc.strip())]

    def update(self, n: float) -> None:
        assert not self.closed
        self.n += n
        self.seen.append((self.n, self.words))

    def set_description_str(self, desc: str, refresh: bool) -> None:
        assert not refresh  # drawing is left to `update`, which knows when it was last done
        self.words = desc.strip()

    def refresh(self) -> None:
        pass

    def clear(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(words for _, words in self.seen))


@pytest.fixture
def bars(monkeypatch) -> list[Recorder]:
    """The bars of a test, none of which is drawn."""
    made: list[Recorder] = []

    class Kept(Recorder):
        def __init__(self, *args, **keywords) -> None:
            super().__init__(*args, **keywords)
            made.append(self)

    theirs = logging.EmptyTqdm  # transformers' own bars, as of what it writes
    monkeypatch.setattr(logging, "tqdm", lambda *args, **look: (Kept if "total" in look else theirs)(*args, **look))
    monkeypatch.setattr(logging, "_tqdm_active", True)
    for name in progress.RANKS:
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def source(saved) -> str:
    return saved("gpt2", "GPT2LMHeadModel", layer=3, hidden=16, heads=4, ffn=32)[0]


def the_one(bars: list[Recorder]) -> Recorder:
    """The only bar: whole, closed once, and forward only."""
    (one,) = bars
    places = [place for place, _ in one.seen]
    assert places == sorted(places)
    assert one.n == one.total  # to the last bit: tqdm warns of more
    assert one.seen[-1][1] == "done"
    assert (one.closed, one.leave) == (1, True)
    return one


def in_order(parts: list[str], stages: list[str]) -> None:
    places = [stages.index(part) for part in parts]
    assert places == sorted(places)


def test_a_call_is_told_from_its_first_moment_to_its_last(bars, source):
    bot.BoTModelForCausalLM.from_pretrained(source, **SMALL)
    stages = the_one(bars).stages
    assert stages[0] == "resizing"
    in_order([*OPENED, *REWRITTEN, "resizing transformer.wte.weight", "building the model", "done"], stages)


def test_a_folder_is_told_to_its_last_byte(bars, source, tmp_path):
    bot.resize_checkpoint(source, tmp_path / "out", **SMALL)
    stages = the_one(bars).stages
    ended = ["resizing transformer.wte.weight", "hashing the source's files", "bringing the files to the disk", "done"]
    in_order([*OPENED, *REWRITTEN, "building the model", *ended], stages)


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("batches", [BATCHES, iter(BATCHES)], ids=["counted", "uncounted"])
def test_calibration_moves_within_every_batch_and_every_fit(bars, source, batches):
    bot.BoTModelForCausalLM.from_pretrained(source, **SMALL, calibration=batches)
    bar = the_one(bars)
    of = " of 3" if batches is BATCHES else ""
    for number in (1, 2, 3):
        places = {place for place, words in bar.seen if words == f"calibrating, batch {number}{of}"}
        assert len(places) > 3 * 5  # every layer has more modules that are looked at
    fitted = {words: place for place, words in bar.seen if words.startswith("fitting transformer.h.")}
    assert len(set(fitted.values())) == len(fitted) >= 3 * 3


def test_importance_tells_of_its_batches(bars, source):
    bot.BoTModelForCausalLM.from_pretrained(source, **SMALL, calibration=BATCHES, method="importance")
    assert "calibrating, batch 3 of 3" in the_one(bars).stages


@pytest.mark.slow
def test_what_takes_long_moves_with_every_layer(bars, saved):
    """Counted, not timed: between two updates there is never more than a layer of a stage, or one tensor."""
    folder, _ = saved("gpt2", "GPT2LMHeadModel", layer=6, hidden=16, heads=4, ffn=32)
    bot.BoTModelForCausalLM.from_pretrained(folder, **{**SMALL, "n_layer": 3}, calibration=BATCHES)
    measured = the_one(bars)
    bars.clear()
    bot.BoTModelForCausalLM.from_pretrained(folder, **{**SMALL, "n_layer": 3})
    least = {"finding the order of MLP units": 3, "finding the order of heads": 3, "resizing transformer.h.": 3 * 12}
    found = [(measured, {**least, "fitting transformer.h.": 6 * 4, "calibrating, batch 2": 6 * 6})]
    for bar, counts in [*found, (the_one(bars), {**least, "finding the basis": 6 * 4})]:
        for words, count in counts.items():
            places = {place for place, said in bar.seen if said.startswith(words)}
            assert len(places) >= count, words


def test_fitting_an_operator_tells_every_step(bars, saved):
    model = grow(saved, "gpt2", "GPT2LMHeadModel", "ligo", hidden=20, heads=5, ffn=40)
    bars.clear()
    bot.fit(model, [labelled(model, {"input_ids": BATCHES[0]["input_ids"]})], steps=4)
    steps = [f"fitting the operator, step {step} of 4" for step in range(1, 5)]
    in_order(["opening the source", *steps, "done"], the_one(bars).stages)


@pytest.mark.slow
def test_a_fit_within_a_call_is_a_part_of_its_bar(bars, source, tmp_path):
    batches = [{**batch, "labels": batch["input_ids"]} for batch in BATCHES]
    big = {"n_embd": 24, "n_head": 6, "n_inner": 48}
    bot.resize_checkpoint(source, tmp_path / "out", **big, method="ligo", fit={"batches": batches, "steps": 3})
    steps = [f"fitting the operator, step {step} of 3" for step in range(1, 4)]
    in_order([*OPENED, "resizing transformer.wte.weight", *steps, "hashing the source's files"], the_one(bars).stages)


@pytest.mark.slow
def test_verifying_and_measuring_have_one_too(bars, source, tmp_path):
    bot.resize_checkpoint(source, tmp_path / "out", **SMALL)
    bars.clear()
    assert bot.verify(tmp_path / "out", source).equal
    in_order(["verifying", *OPENED[1:], "resizing transformer.wte.weight", "done"], the_one(bars).stages)
    bars.clear()
    inspect(source)
    in_order(["opening the source", "measuring transformer.wte.weight", "done"], the_one(bars).stages)


@pytest.mark.slow
def test_the_integration_has_the_same(bars, source):
    config = resized_config(AutoModelForCausalLM.from_pretrained(source).config, hidden=8, heads=2, ffn=16)
    bars.clear()
    with bot.integration():
        AutoModelForCausalLM.from_pretrained(source, config=config)
    in_order([*OPENED[1:], "done"], the_one(bars).stages)


# -- where there is none ---------------------------------------------------------------------------


def test_a_call_that_resizes_nothing_leaves_none_behind(bars, source):
    bot.BoTModelForCausalLM.from_pretrained(source)
    assert bars == []
    bot.BoTModelForCausalLM.from_pretrained(source, n_layer=3)
    (ours,) = bars
    assert (ours.closed, ours.leave) == (1, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", progress.RANKS)
def test_only_the_first_process_of_a_job_shows_one(bars, source, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    bot.BoTModelForCausalLM.from_pretrained(source, **SMALL)
    assert bars == []
    monkeypatch.setenv(name, "0")
    bot.BoTModelForCausalLM.from_pretrained(source, **SMALL)
    the_one(bars)


def test_none_where_transformers_shows_none(bars, source, monkeypatch):
    monkeypatch.setattr(logging, "_tqdm_active", False)
    bot.BoTModelForCausalLM.from_pretrained(source, **SMALL)
    assert bars == []


def test_our_own_muting_of_transformers_does_not_touch_it(bars, source):
    """In the middle of the call transformers' bars are hidden: ours was made before and goes on."""
    bot.BoTModelForCausalLM.from_pretrained(source, **SMALL)
    assert any(words == "opening the source" for _, words in the_one(bars).seen)
    assert logging.is_progress_bar_enabled()


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.covering(few=1)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_it_is_closed_and_taken_away_when_the_call_fails(bars, source, monkeypatch, error):
    def fails(*_args, **_keywords):
        raise error

    monkeypatch.setattr("transformers_bot.run.loading.make_report", fails)
    with pytest.raises(error):
        bot.BoTModelForCausalLM.from_pretrained(source, **SMALL)
    (one,) = bars
    assert (one.closed, one.leave) == (1, False)
    monkeypatch.undo()
    assert progress.here().line is None  # the next call has its own


def test_an_interrupt_between_batches_closes_it(bars, source):
    def batches():
        yield BATCHES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bot.BoTModelForCausalLM.from_pretrained(source, **SMALL, calibration=batches())
    assert [one.closed for one in bars] == [1]


def test_a_refused_call_leaves_no_bar_on_the_screen(bars, source):
    with pytest.raises(bot.BadSize):
        bot.BoTModelForCausalLM.from_pretrained(source, n_embd=9, n_head=2)
    assert [(one.closed, one.leave) for one in bars] == [(1, False)]


class Screen(io.StringIO):
    """A standard error that takes some lines and then no more, until it is `mended`."""

    def __init__(self, takes: int, error: BaseException) -> None:
        super().__init__()
        self._left, self._error = takes, error

    def write(self, text: str) -> int:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return super().write(text)

    def mended(self) -> None:
        """Take everything: tqdm draws a bar that broke once more when it is garbage collected, in any later test."""
        self._left = -1


def draws_elsewhere() -> bool:
    """Whether another thread can draw a bar of tqdm: it waits for their lock for some seconds, not for ever."""
    drawing = threading.Thread(target=lambda: tqdm(total=1, file=io.StringIO()).close(), daemon=True)
    drawing.start()
    drawing.join(20)
    return not drawing.is_alive()


def shown_on(screen: Screen, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    for name in progress.RANKS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("takes", range(12))
@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt, MemoryError, RuntimeError])
def test_a_bar_that_breaks_while_it_is_drawn_keeps_no_other_thread_waiting(monkeypatch, takes, error):
    """tqdm itself would keep its lock then."""
    screen = Screen(takes, error("broken"))
    with monkeypatch.context() as here:
        shown_on(screen, here)
        with contextlib.suppress(KeyboardInterrupt, MemoryError, RuntimeError), progress.bar("all"):
            logger.warning("in between")
            with progress.part("one"):
                pass
    screen.mended()
    assert draws_elsewhere()


def test_a_lock_that_the_caller_holds_stays_held(monkeypatch):
    screen = Screen(0, OSError("broken"))
    with tqdm.get_lock(), monkeypatch.context() as here:
        shown_on(screen, here)
        with progress.bar("all"):
            pass
        assert all(progress._is_held(lock) for lock in tqdm.get_lock().locks)
        for lock in tqdm.get_lock().locks:
            while progress._is_held(lock):
                lock.release()
        tqdm.get_lock().acquire()
    screen.mended()
    assert draws_elsewhere()


@pytest.mark.slow
@pytest.mark.parametrize("takes", [0, 3])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe"), ValueError("not open")]
)
def test_a_screen_that_takes_no_more_ends_the_bar_alone(source, monkeypatch, capsys, takes, error):
    screen = Screen(takes, error)
    with monkeypatch.context() as here:
        shown_on(screen, here)
        model = bot.BoTModelForCausalLM.from_pretrained(source, **SMALL)
        gc.collect()  # no bar is drawn once more
    assert model.config.n_layer == SMALL["n_layer"]
    assert "resizing" in screen.getvalue() or takes == 0
    assert draws_elsewhere()
    assert "Exception ignored" not in screen.getvalue() + capsys.readouterr().err


# -- without effect --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("calibration", [None, BATCHES], ids=["weights", "calibrated"])
def test_results_are_the_same_bits_with_and_without(bars, source, tmp_path, monkeypatch, calibration):
    bot.resize_checkpoint(source, tmp_path / "shown", **SMALL, calibration=calibration)
    monkeypatch.setattr(logging, "_tqdm_active", False)
    bot.resize_checkpoint(source, tmp_path / "silent", **SMALL, calibration=calibration)
    assert len(bars) == 1
    shown, silent = (load_file(tmp_path / name / "model.safetensors") for name in ("shown", "silent"))
    assert shown.keys() == silent.keys()
    assert all(torch.equal(shown[name], silent[name]) for name in shown)


def test_every_thread_has_its_own(bars, source):
    def load() -> None:
        bot.BoTModelForCausalLM.from_pretrained(source, **SMALL)

    with progress.bar("outside"):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        assert len(bars[0].seen) == 2  # its beginning: the other call did not move it
    assert [one.stages[0] for one in bars] == ["outside", "resizing"]


# -- the bar itself --------------------------------------------------------------------------------


def test_parts_divide_what_is_left_by_their_weights(bars):
    with progress.bar("all"):
        progress.expects(4)
        with progress.part("one", 1):
            assert list(progress.tracked("abcd", [1, 1, 1, 1])) == [*"abcd"]
        with progress.part("two", 1):
            progress.expects(2)
            with progress.part("half", 1):
                pass
            assert bars[0].n == pytest.approx(37.5)
        progress.expects(1)  # it comes to less than was thought
        with progress.part("three", 1):
            assert bars[0].n == pytest.approx(50)
        assert bars[0].n == pytest.approx(100)
    the_one(bars)


def test_more_parts_than_foretold_neither_end_early_nor_go_back(bars):
    with progress.bar("all"):
        progress.expects(1)
        for _ in range(5):
            with progress.part("more", 2):
                pass
            assert bars[0].n < progress.WHOLE
    the_one(bars)


def test_outside_of_a_bar_nothing_happens(bars):
    progress.expects(3)
    with progress.part("alone") as span:
        span.at(0.5)
    assert list(progress.tracked([1, 2], [1, 1])) == [1, 2]
    progress.withdraw()
    with progress.aside():
        pass
    assert bars == []


def test_a_message_stands_on_a_line_of_its_own(bars, monkeypatch):
    order = []
    with progress.bar("all"):
        monkeypatch.setattr(bars[0], "clear", lambda: order.append("cleared"))
        monkeypatch.setattr(bars[0], "refresh", lambda: order.append("drawn again"))
        logger.warning("in between")
        assert order == ["cleared", "drawn again"]


@pytest.mark.parametrize("name", ["wte", "transformer.h.11.attention.output.LayerNorm.a_very_long_name.weight"])
def test_words_have_one_width_and_keep_the_end_of_a_name(name):
    fitted = progress._fitted(f"resizing {name}")
    assert len(fitted) == progress.WIDTH
    assert fitted.startswith("resizing ")
    assert fitted.rstrip().endswith(name[-20:])


def test_what_is_drawn_has_the_words_and_the_share(capsys, monkeypatch):
    """transformers' own bar, drawn into a stream."""
    monkeypatch.setattr(logging, "_tqdm_active", True)
    for name in progress.RANKS:
        monkeypatch.delenv(name, raising=False)
    with progress.bar("all"), progress.part("finding the basis"):
        pass
    drawn = capsys.readouterr().err
    assert "finding the basis" in drawn
    assert "100%|" in drawn
    assert drawn.endswith("\n")
