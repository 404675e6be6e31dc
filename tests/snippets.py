"""The snippets of a document, run one after another as printed: `python snippets.py DOCUMENT`, in an empty folder.

Python blocks share one namespace, as in a notebook. Of a shell block every command runs: our own command line in this
process, launchers as a process. What would install packages, train for an hour or fill a disk is not run, but what it
names must be there: extras of pyproject.toml, scripts, options, files. A block under `<!-- file: NAME -->` is saved
under that name for the blocks behind it, and not run itself.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- (ci|file|test): (\S+) -->")
RUN = ("python", "bash", "yaml")
SHOWN = ("text", "json", "bibtex")  # what a command prints, and the like


@dataclass(frozen=True)
class Snippet:
    """A fenced block.

    Attributes:
        language: the word behind its fence.
        text: what stands in it.
        line: of its first line in the document, from 1.
        mark: the kind and the word of the comment above it, if there is one.
    """

    language: str
    text: str
    line: int
    mark: tuple[str, str] | None = None


def snippets_of(document: Path) -> list[Snippet]:
    """All fenced blocks of a document, in order."""
    found, lines = [], document.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        above = MARK.fullmatch(lines[start - 1]) if start else None
        text = "\n".join(lines[start + 1 : number])
        mark = (above[1], above[2]) if above else None
        found.append(Snippet(lines[start].removeprefix("```"), text, start + 2, mark))
        start = None
    if start is not None:
        raise ValueError(f"{document}: the fence of line {start + 1} is never closed")
    return found


def commands_of(text: str) -> list[list[str]]:
    """The words of each command of a shell block: lines joined at backslashes, comments dropped, split at `&&`."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            cut = words.index("&&")
            found.append(words[:cut])
            words = words[cut + 1 :]
        found.append(words)
    return [words for words in found if words]


def run(document: Path) -> int:
    """Run every snippet of a document here; how many there were."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    blocks = snippets_of(document)
    for block in blocks:
        where = f"{document.name}:{block.line}"
        print(f"== {where} ({block.language})", flush=True)
        if block.language not in (*RUN, *SHOWN):
            raise ValueError(f"{where}: nobody knows how to run {block.language!r}")
        if block.mark and block.mark[0] in ("file", "test"):
            Path(block.mark[1]).write_text(block.text + "\n", encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(document), "exec"), namespace)
        elif block.language == "bash" and not (block.mark and block.mark[0] == "ci"):  # those are run by .ci/run
            for words in commands_of(block.text):
                _command(words, where)
        elif block.language == "yaml":
            raise ValueError(f"{where}: a YAML block needs the name of a file: <!-- file: NAME -->")
    return len(blocks)


def _command(words: list[str], where: str) -> None:
    environment = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    print("$", *words, flush=True)
    if words[0] == "transformers-bot":
        from transformers_bot import cli

        try:
            code = cli.main(words[1:])
        except SystemExit as left:
            code = int(left.code or 0)
        if code:
            raise RuntimeError(f"{where}: exit code {code} of {words}")
    elif words[0] in ("torchrun", "accelerate"):
        _launch(words, environment)
    elif words[0] in ("pip", ".venv/bin/pip"):
        _check_extras(words, where)
    elif words[0] == "python":
        _check_script(words[1:], where)
    else:
        raise RuntimeError(f"{where}: nobody knows how to run {words[0]!r}")


def _launch(words: list[str], environment: dict[str, str]) -> None:
    """Run a launcher where the machine has what it asks for: more than two processes are taken to want GPUs."""
    count = next((int(words[n + 1]) for n, word in enumerate(words) if word in ("--num_processes", "--nproc-per-node")))
    script = next(word for word in words if word.endswith(".py"))
    if not Path(script).exists() and not (ROOT / script).exists():
        raise FileNotFoundError(script)
    if count > 2 or not Path(script).exists():  # examples/ have tests of their own
        return
    module = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}[words[0]]
    given = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    # A free port of its own: the launchers' fixed one may be another job's.
    port = {"torchrun": ["--standalone"], "accelerate": ["launch", "--main_process_port", "0"]}[words[0]]
    rest = words[1:] if words[0] == "torchrun" else words[2:]
    subprocess.run([sys.executable, "-m", module, *port, *rest], env=given, check=True, timeout=300)


def _check_extras(words: list[str], where: str) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in re.findall(r"\.\[([\w,-]+)\]", " ".join(words)):
        missing = set(name.split(",")) - set(known)
        if missing:
            raise RuntimeError(f"{where}: no extra {missing} in pyproject.toml")


def _check_script(words: list[str], where: str) -> None:
    """Scripts and paths exist, and a script knows its options."""
    if words[:2] == ["-m", "pytest"]:
        paths, options = [word for word in words[2:] if not word.startswith("-")], []
    else:
        paths, options = words[:1], [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    for path in paths:
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{where}: {path}")
    if options:
        shown = [sys.executable, str(ROOT / paths[0]), "--help"]
        help_text = subprocess.run(shown, capture_output=True, text=True, check=True, timeout=120).stdout
        unknown = [option for option in options if option not in help_text]
        if unknown:
            raise RuntimeError(f"{where}: {paths[0]} has no {unknown}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", type=Path)
    print(run(parser.parse_args().document), "snippets")
