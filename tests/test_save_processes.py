"""A save that is killed, interrupted, limited or raced leaves a whole old folder or a whole new one.

TRANSFORMERS_BOT_KILLS sets how many kills there are (60 by default).
"""

import os
import signal
import time

import pytest
from saving import driver, left_over, read_save, write_save

from transformers_bot import SaveError
from transformers_bot.io.atomic_folder import whole_folder

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("TRANSFORMERS_BOT_KILLS", "60"))


@pytest.fixture(scope="module")
def ask():
    with driver() as ask:
        yield ask


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "aside"])
def test_a_killed_save_leaves_a_whole_folder(ask, tmp_path, exchange):
    count = KILLS if exchange else KILLS // 3
    found = ask("kills", tmp_path, count, 0, exchange)
    assert found["saves"] > 0  # the loop did save
    assert found["partial"] + found["finished"] >= count // 10  # and the kills did hit it before the move
    assert found["lock"] >= count // 10  # a lock file without its process kept nobody out
    assert "between" not in found or not exchange


def test_of_two_processes_one_wins(ask, tmp_path):
    result = ask("rivals", tmp_path, 1.5)
    assert result["codes"] == [0, 0]
    assert all(counts["won"] > 0 for counts in result["counts"])
    assert sum(counts.get("refused", 0) for counts in result["counts"]) > 0
    assert not any("failed" in counts for counts in result["counts"])
    assert result["left"] == []


def test_the_second_is_refused_at_once_and_the_first_ends_well(ask, tmp_path):
    ask("hold", tmp_path, 7)
    start = time.monotonic()
    busy = r"Another process is writing to .*/out\. Wait for it, or choose another folder\."
    with pytest.raises(SaveError, match=busy), whole_folder(tmp_path / "out"):
        pass
    assert time.monotonic() - start < 1
    with whole_folder(tmp_path / "other"):
        pass  # its own lock
    (tmp_path / "go").touch()
    while not (tmp_path / "out").exists():
        time.sleep(0.01)
    assert read_save(tmp_path / "out") == 7


def test_a_killed_process_holds_no_lock_and_what_it_left_is_named(ask, tmp_path, caplog):
    pid = ask("hold", tmp_path, 7)
    os.kill(pid, signal.SIGKILL)
    (staging,) = tmp_path.glob(f".out.bot-{pid}-*")
    time.sleep(0.2)  # the system takes the process and its locks down
    with whole_folder(tmp_path / "out") as folder:
        write_save(folder, 8)
    assert read_save(tmp_path / "out") == 8
    assert read_save(staging) == 7  # named, not deleted
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{staging} (100.0 KB) was left by a run that was killed. It is not used any more")
    assert not (tmp_path / ".out.bot-lock").exists()


def test_ctrl_c_leaves_nothing(ask, tmp_path):
    assert ask("interrupt", tmp_path) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", ["plain", "safetensors", "shards"])
def test_a_file_over_the_limit_leaves_the_old_folder(ask, tmp_path, writer):
    with whole_folder(tmp_path / "out") as folder:
        write_save(folder, 3)
    message = ask("limited", tmp_path, writer)
    assert message.startswith(f"Cannot write {tmp_path}/out: a file is larger than the limit (ulimit -f)")
    assert f" of 4.0 MB were written or reserved in {tmp_path}. Whatever was there is unchanged." in message
    assert ("160.0 KB of" in message) == (writer == "plain")
    assert read_save(tmp_path / "out") == 3
    assert left_over(tmp_path / "out") == []
