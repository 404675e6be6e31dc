"""Make an environment of one end of the allowed versions, and run the core tests in it.

    python tests/ranges/run_range.py lowest --python python3.11
    python tests/ranges/run_range.py newest --python python3.13
    python tests/ranges/run_range.py lowest tests             # all but those that need several processes or minutes

torch 2.4.0 comes with CUDA libraries of some 3 GB. Further arguments are pytest's. What was run, with which versions
and how it ended, is noted in `results.json` beside this file, where a run replaces that of the same end and Python;
`tests/test_ranges.py` holds pyproject.toml to it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = HERE / "results.json"
ENDS = {"lowest": HERE / "lowest.txt", "newest": ROOT / "constraints.txt"}
# Every way through transformers, torch and accelerate: plans, resizing in memory and into files, GPUs' code on the CPU,
# many threads, the patched classes, tables, and every family. The other tests are of our own arithmetic and sentences.
CORE = ("plan", "gpu", "memory", "room", "threads", "integration", "model", "streaming", "report")
CORE += ("function", "decoders", "encoders", "visions", "two_stacks", "experts", "fused_heads")
# What needs several processes or minutes, or measures time, and has no other code of ours than the rest.
LEFT_OUT = ("ranks", "faults/test_fuzz.py", "test_save_processes.py")
LEFT_OUT_KINDS = ("test_examples_*.py",)
# At the lowest end: figures of a report may differ in the last digit between two runs with torch 2.4 (weights do not),
# and its CUDA build takes longer to import than a test of two rivals waits. transformers 5.0 has no list of layer types
# for ModernBERT and goes by the distance of global layers, names the head of DeBERTa's matrix otherwise, turns another
# part of GLM-4's heads by default, and takes images of DINOv3 with one side only.
NOT_AT = {
    "lowest": (
        "test_report.py::test_the_same_inputs_give_the_same_bytes",
        "test_streaming_faults.py::test_two_processes_on_one_target",
        "test_encoders.py::test_no_layer_stands_for_one_that_has_no_norm",
        "test_encoders.py::test_lists_travel_and_the_first_layer_needs_no_norm",
        "test_encoders.py::test_layers_that_go_by_their_number_are_refused",
        "test_encoders.py::test_a_head_that_reads_the_input_embedding_without_a_tie_grows_exactly",
        "test_fused_heads.py::test_a_head_of_which_a_part_turns_keeps_its_length",
        "test_visions.py::test_a_halved_model_runs[dinov3 plain-False]",
    )
}
SHOWN = ("torch", "transformers", "accelerate", "safetensors", "pywavelets", "huggingface_hub", "tokenizers")
SHOWN += ("rich", "numpy", "psutil")
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
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.xml"
        command = [inside, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", f"--junit-xml={counts}"]
        named = any(not word.startswith("-") for word in more)
        core = [*(tests / f"test_{name}.py" for name in CORE), "-m", "not slow"]
        command += [*ignored, *(() if named else core), *more]
        ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
        if not counts.exists():
            print(f"pytest was ended ({ended}) before it had counted: nothing is noted", file=sys.stderr)
            return ended or 1
        result = {"end": end, **json.loads(told), **counted(counts), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    note(result | {"selected": " ".join(more) or "core"})
    print(json.dumps(result))
    return ended


def counted(counts: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped, from pytest's JUnit file."""
    suite = ElementTree.parse(counts).getroot().find("testsuite")
    assert suite is not None
    total, skipped, *bad = (int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors"))
    return {"passed": total - skipped - sum(bad), "failed": sum(bad), "skipped": skipped}


def note(result: dict[str, object]) -> None:
    """Put a result in the place of the one of the same end and minor version of Python."""

    def which(row: dict[str, object]) -> tuple[object, list[str]]:
        return row["end"], str(row["python"]).split(".")[:2]

    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [row for row in rows if which(row) != which(result)] + [result]
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
