"""Make an environment of one end of the allowed versions, and run the core tests in it.

    python tests/ranges/run_range.py lowest --python python3.11
    python tests/ranges/run_range.py newest --python python3.13

torch 2.4.0 comes with CUDA libraries of some 3 GB. The last line says what was run and how it ended.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENDS = {"lowest": HERE / "lowest.txt", "newest": ROOT / "constraints.txt"}
# What needs several processes or minutes, or measures time, and has no other code of ours than the rest.
LEFT_OUT = ("ranks", "faults/test_fuzz.py", "test_save_processes.py")
LEFT_OUT_KINDS = ("test_examples_*.py",)
# At the lowest end: figures of a report may differ in the last digit between two runs with torch 2.4 (weights do not),
# and its CUDA build takes longer to import than a test of two rivals waits.
NOT_AT = {
    "lowest": (
        "test_report.py::test_the_same_inputs_give_the_same_bytes",
        "test_streaming_faults.py::test_two_processes_on_one_target",
    )
}
SHOWN = ("torch", "transformers", "accelerate", "safetensors", "pywavelets", "huggingface_hub", "tokenizers")
SHOWN += ("numpy", "psutil")
TELL = """
import json, platform, sys
from importlib.metadata import version
print(json.dumps({"python": platform.python_version()} | {name: version(name) for name in sys.argv[1:]}))
"""


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("end", choices=ENDS)
    asked.add_argument("--python", default=sys.executable, help="interpreter, 3.11 to 3.13 (lowest: 3.11 or 3.12)")
    asked.add_argument("--environment", type=Path, help="folder to make it in and keep; else it is thrown away")
    words, more = asked.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        return run(words.end, words.python, words.environment or Path(folder) / "venv", more)


def run(end: str, python: str, environment: Path, more: list[str]) -> int:
    """Install and test; what pytest returned."""
    inside = environment / "bin" / "python"
    if not inside.exists():
        subprocess.run([python, "-m", "venv", environment], check=True)
    install = [inside, "-m", "pip", "install", "--quiet", "-c", ENDS[end], "-e", f"{ROOT}[test]"]
    subprocess.run(install, check=True)
    told = subprocess.run([inside, "-c", TELL, *SHOWN], check=True, capture_output=True, text=True).stdout
    tests = ROOT / "tests"
    left_out = [tests / name for name in LEFT_OUT] + [path for kind in LEFT_OUT_KINDS for path in tests.glob(kind)]
    ignored = [f"--ignore={path}" for path in left_out]
    ignored += [f"--deselect=tests/{name}" for name in NOT_AT.get(end, ())]
    command = [inside, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", *ignored, tests, *more]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    versions = ", ".join(f"{name} {version}" for name, version in json.loads(told).items())
    print(f"{end}: {versions}: {'passed' if ended == 0 else f'failed, pytest returned {ended}'}")
    return ended


if __name__ == "__main__":
    sys.exit(main())
