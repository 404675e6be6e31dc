"""What an import brings: public names are looked up when they are asked for, and nobody waits for torch before."""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import transformers_bot
from transformers_bot import auto
from transformers_bot.tasks import TASKS

pytest_plugins = ["cli_window"]  # tiny

FOLDER = Path(transformers_bot.__file__).parent
SUBMODULES = sorted(
    f"transformers_bot.{file.stem if file.suffix else file.name}"
    for file in FOLDER.iterdir()
    if (file.suffix == ".py" or (file / "__init__.py").exists()) and not file.name.startswith("__")
)
MODULES = {"adapters", "configs", "methods", "wavelets"}  # the public names that are modules


def python(code: str, *words: str) -> str:
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh process has after `code`."""
    return set(python(f"import sys\n{code}\nprint(*sys.modules)").splitlines()[-1].split())


# -- what is not imported -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import transformers_bot",
        "import transformers_bot; dir(transformers_bot), transformers_bot.BadSize, transformers_bot.__version__",
        "from transformers_bot import BoTModel, BoTModelForCausalLM, BoTModelForImageClassification, plan",
        "import transformers_bot.auto; transformers_bot.auto.FACTORIES",
        "import transformers_bot.cli; transformers_bot.cli.build_parser().format_help()",
    ],
)
def test_names_alone_need_neither_torch_nor_transformers(code):
    assert not loaded_by(code) & {"torch", "transformers", "numpy", "pywt", "huggingface_hub", "yaml", "matplotlib"}


@pytest.mark.slow
def test_a_factory_brings_nothing_that_its_auto_class_does_not():
    """No model code of transformers, none of its architectures, and of ours only what names it."""
    auto = "from transformers import AutoModelForCausalLM"
    ours = {
        f"transformers_bot{name}"
        for name in ("", ".errors", ".version", ".auto", ".request", ".request.signatures", ".tasks")
    }
    new = loaded_by(f"{auto}\nfrom transformers_bot import BoTModelForCausalLM") - loaded_by(auto)
    assert ours <= new
    assert {name for name in new - ours if name.partition(".")[0] not in sys.stdlib_module_names} == set()


@pytest.mark.slow
def test_the_first_call_imports_no_architecture_but_the_one_it_is_for():
    """All that a call needs, on top of what every model of transformers needs."""
    models = {"bert", "roberta", "gpt2", "vit", "deit"}
    found = loaded_by("import transformers_bot.run.loading")
    assert not {name for name in found if name.startswith("transformers.models.") and name.split(".")[2] in models}
    assert not found & {
        "matplotlib",
        "transformers_bot.learned.fitting",
        "transformers_bot.tools.resize_checkpoint",
        "transformers_bot.cli",
    }


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["resize", "--help"], ["plan", "gpt2", "--wavlet", "x"]])
def test_the_command_line_answers_without_torch(words):
    code = """
import json, sys
from transformers_bot.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    print(json.dumps([left.code, sorted(sys.modules)]))
"""
    left, modules = json.loads(python(code, *words).splitlines()[-1])
    assert left == (2 if "--wavlet" in words else 0)
    assert not set(modules) & {"torch", "transformers", "numpy", "huggingface_hub", "yaml"}


# -- the public names -----------------------------------------------------------------------------


def test_every_public_name_is_there():
    for name in transformers_bot.__all__:
        assert getattr(transformers_bot, name) is not None
    assert set(transformers_bot.__all__) <= set(dir(transformers_bot))
    with pytest.raises(AttributeError, match=r"module 'transformers_bot' has no attribute 'sugest'"):
        _ = transformers_bot.sugest
    with pytest.raises(ImportError, match="cannot import name 'sugest'"):
        exec("from transformers_bot import sugest")


def test_type_checkers_and_python_find_the_same_names():
    """The block for type checkers, the table that Python reads, and `__all__` agree."""
    tree = ast.parse((FOLDER / "__init__.py").read_text())
    block = next(part for part in tree.body if isinstance(part, ast.If))
    shown = {name.name: line.module for line in block.body if isinstance(line, ast.ImportFrom) for name in line.names}
    at_root = {name for name, module in shown.items() if module is None}
    in_rooms = {name: f"{module}.{name}" for name, module in shown.items() if name in MODULES and module}
    assert at_root | {*in_rooms} == MODULES
    assert in_rooms == transformers_bot._MODULES
    assert {name: home for name, home in shown.items() if name not in MODULES} == transformers_bot._HOMES
    at_once = {
        name.name for line in tree.body if isinstance(line, ast.ImportFrom) and line.level for name in line.names
    }
    assert sorted({*shown, *at_once}) == sorted(transformers_bot.__all__)
    assert len(set(transformers_bot.__all__)) == len(transformers_bot.__all__)


@pytest.mark.slow
def test_a_star_import_brings_every_public_name():
    code = "from transformers_bot import *\nimport json; print(json.dumps(sorted(globals())))"
    assert set(transformers_bot.__all__) <= set(json.loads(python(code)))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["submodules first", "names first"])
def test_no_submodule_hides_a_public_name(order):
    """Importing `package.name` sets the attribute `name` of the package, whatever stood there."""
    code = f"""
import importlib, json, sys, types
names = lambda: {{name: getattr(transformers_bot, name) for name in transformers_bot.__all__}}
import transformers_bot
first = names() if {order == "names first"} else {{}}
for name in sys.argv[1:]:
    importlib.import_module(name)
found = names()
assert all(found[name] is value for name, value in first.items())
print(json.dumps({{name: isinstance(value, types.ModuleType) for name, value in found.items()}}))
"""
    are_modules = json.loads(python(code, *SUBMODULES))
    assert {name for name, is_module in are_modules.items() if is_module} == MODULES
    taken = {name.removeprefix("transformers_bot.") for name in SUBMODULES} & set(transformers_bot.__all__)
    assert taken == MODULES - {*transformers_bot._MODULES}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fresh process for each would take minutes")
def test_every_submodule_can_be_the_first_one_imported():
    """No cycle depends on what was imported before: each in a fork of a process that has torch and transformers."""
    code = """
import importlib, os, sys
from transformers import PreTrainedModel
assert not [name for name in sys.modules if name.startswith("transformers_bot")]
failed = []
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        code = 1
        try:
            module = importlib.import_module(name)
            import transformers_bot
            code = getattr(transformers_bot, name.partition(".")[2]) is not module
        finally:
            os._exit(code)
    failed += [name] if os.waitpid(child, 0)[1] else []
print(*failed)
"""
    assert python(code, *SUBMODULES) == ""


@pytest.mark.slow
def test_a_submodule_is_an_attribute_of_the_package_without_an_import_of_its_own():
    code = "import transformers_bot as bot; print(bot.methods.__name__, bot.auto.BoTModel.__name__, bot.report)"
    assert python(code).startswith("transformers_bot.methods BoTModel <module 'transformers_bot.report'")


def test_factories_name_their_auto_class_and_pickle():
    for factory in auto.FACTORIES.values():
        named = factory.__name__.replace("BoTModel", "AutoModel")
        assert factory.auto_class is getattr(transformers, named)
        assert pickle.loads(pickle.dumps(factory)) is factory
        assert getattr(transformers_bot, factory.__name__) is factory
        assert hasattr(transformers.models.auto.modeling_auto, TASKS[factory.task].mapping)


# -- interrupts -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is a signal on POSIX")
@pytest.mark.parametrize("module", ["torch", "transformers.modeling_utils"])
def test_ctrl_c_while_torch_is_imported_ends_quietly(tiny, module):
    """A finder that sees the import begin raises SIGINT, so the moment does not depend on the machine's speed."""
    code = f"""
import os, signal, sys
from transformers_bot.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.exit(main(["plan", {str(tiny)!r}, "--set", "n_layer=2"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "transformers-bot: interrupted.\n")
