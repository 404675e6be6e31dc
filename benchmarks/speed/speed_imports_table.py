"""The table of `imports`, from its JSON alone."""

from typing import Any

from speed_figures import spread

NOTES = """\
New interpreters, files in the page cache, all cases in turn in every round; median [least, most]. "the last line" is
what comes on top of the lines before it. `import transformers` loads its models only when they are asked for, so
the second case is what a user of the Auto classes waits for anyway. The package puts off its own imports to the first
call; the case with a first plan has them and the making of that plan.
"""
HEAD = ["imported", "in all, ms", "the last line, ms", "modules"]


def rows(data: dict[str, Any]) -> list[list[str]]:
    made = []
    for key, case in data["cases"].items():
        whole = [sum(seconds) for seconds in case["seconds"]]
        last = [seconds[-1] for seconds in case["seconds"]]
        made.append([key, _ms(whole), _ms(last), str(case["modules"])])
    return made


def _ms(seconds: list[float]) -> str:
    return str(spread([1000 * value for value in seconds]))
