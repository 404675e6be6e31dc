"""Dependencies go one way: no import circle of modules or rooms, those inside functions included, and few floors."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import transformers_bot

FOLDER = Path(transformers_bot.__file__).parent
FLOORS = 14  # rooms that stand on one another
ROOT = 10  # modules beside the rooms
LINES = 800  # of the longest file
BODY = 50  # lines of the longest function, without its signature and docstring


def module_name(file: Path) -> str:
    parts = file.relative_to(FOLDER.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(FOLDER.rglob("*.py"))}


def imported(name: str, file: Path) -> Iterator[str]:
    """The package's own modules that a module imports when it is loaded or when its functions run."""
    room = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for line in lines_that_run(ast.parse(file.read_text())):
        if isinstance(line, ast.Import):
            yield from (alias.name for alias in line.names if alias.name in MODULES)
        elif isinstance(line, ast.ImportFrom):
            base = resolve_name("." * line.level + (line.module or ""), room) if line.level else line.module
            for alias in line.names:
                inner = f"{base}.{alias.name}"
                yield from (known for known in (inner if inner in MODULES else base,) if known in MODULES)


def lines_that_run(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from lines_that_run(child)


def room_of(name: str) -> str:
    """The folder of a module directly under the package; a module beside the folders is a room of its own."""
    return ".".join(name.split(".")[:2])


USES = {name: set(imported(name, file)) - {name} for name, file in MODULES.items()}


def floors(uses: dict[str, set[str]]) -> dict[str, int]:
    """The number of rooms or modules that each stands on, on the longest way; `CycleError` for a circle."""
    heights: dict[str, int] = {}
    for name in TopologicalSorter(uses).static_order():
        heights[name] = max((heights[below] + 1 for below in uses.get(name, ())), default=0)
    return heights


def test_no_module_imports_in_a_circle():
    heights = floors(USES)
    assert heights["transformers_bot.errors"] == 0
    assert heights["transformers_bot.tools.verifying"] > 10  # the graph is not empty


def test_rooms_stand_on_few_floors_and_in_no_circle():
    rooms: dict[str, set[str]] = {}
    for name, used in USES.items():
        rooms.setdefault(room_of(name), set()).update(room_of(other) for other in used)
    heights = floors({room: used - {room} for room, used in rooms.items()})
    assert max(heights.values()) + 1 <= FLOORS, sorted(heights.items(), key=lambda pair: pair[1])
    assert len(heights) > 20


def test_few_modules_lie_beside_the_rooms():
    assert 5 < len(list(FOLDER.glob("*.py"))) <= ROOT


def test_no_file_and_no_function_is_long():
    long_files = {name: n for name, file in MODULES.items() if (n := len(file.read_text().splitlines())) > LINES}
    functions = {
        f"{name}.{node.name}": lines_of_body(node)
        for name, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert long_files == {}
    assert {name: lines for name, lines in functions.items() if lines > BODY} == {}


def lines_of_body(function: ast.FunctionDef) -> int:
    """Without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0
