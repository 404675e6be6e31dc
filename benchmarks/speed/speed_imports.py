"""The cost of importing the package on top of torch and transformers, each in a new interpreter."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

BASE = "import torch, transformers"
CASES: dict[str, tuple[str, ...]] = {
    "torch and transformers": (BASE,),
    "and AutoModelForCausalLM": (BASE, "from transformers import AutoModelForCausalLM"),
    "and transformers_bot": (BASE, "import transformers_bot"),
    "and BoTModelForCausalLM": (BASE, "from transformers_bot import BoTModelForCausalLM"),
    "AutoModelForCausalLM, then BoTModelForCausalLM": (
        f"{BASE}; from transformers import AutoModelForCausalLM",
        "from transformers_bot import BoTModelForCausalLM",
    ),
    "the same with GPT-2's model, then a first plan": (
        f"{BASE}; from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel",
        "import transformers_bot; transformers_bot.plan(GPT2Config(), n_layer=6)",
    ),
    "BoTModelForCausalLM alone": ("from transformers_bot import BoTModelForCausalLM",),
}
TIMED = """
import json, sys, time
seconds = []
for line in sys.argv[1:]:
    start = time.perf_counter()
    exec(line)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds, "modules": len(sys.modules)}))
"""


def run(store: Any, options: Any, say: Callable[[str], None]) -> list[str]:
    """Measure every case in turn for several rounds; a first, untimed round puts all files into the page cache."""
    wanted = {key: lines for key, lines in CASES.items() if options.wants(key)}
    wanted = {key: lines for key, lines in wanted.items() if not (options.resume and store.has(key))}
    rounds = [{key: imported(lines) for key, lines in wanted.items()} for _ in range(options.repeats + 1)][1:]
    for key, lines in wanted.items():
        found = [measured[key] for measured in rounds]
        seconds = [one["seconds"] for one in found]
        store.add(key, {"lines": list(lines), "modules": found[0]["modules"], "seconds": seconds})
        say(f"{key}: last line {min(one[-1] for one in seconds) * 1000:.1f} ms at best")
    return []


def imported(lines: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of each line in one new interpreter, and the number of modules at the end."""
    command = [sys.executable, "-c", TIMED, *lines]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{'; '.join(lines)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
