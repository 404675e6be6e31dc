"""What the pages take out of the package when they are built, so that it is written down once."""

import dataclasses


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the table of every method's options in the place of its marker."""
    return markdown.replace("<!-- options of every method -->", options_table())


def options_table() -> str:
    """Each method with its options, their meanings, and defaults, as Markdown."""
    from transformers_bot import methods
    from transformers_bot.methods import base

    rows = ["| method | option | default | meaning |", "| --- | --- | --- | --- |"]
    for name, method in methods.METHODS.items():
        fields = {field.name: field for field in dataclasses.fields(base.options_class(method))}
        for option in base.option_names(method) or ("",):
            if not option:
                rows.append(f"| `{name}` | none |  |  |")
                continue
            meaning = fields[option].metadata.get("meaning", option)
            rows.append(f"| `{name}` | `{option}` | `{fields[option].default}` | {meaning} |")
    return "\n".join(rows)
