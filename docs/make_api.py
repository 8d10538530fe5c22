"""Writes docs/api.md: every public name from its docstring, and what can be asked for by name.

The docstrings are parsed by griffe; nothing of the page is typed by hand.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

from grokscope.experiments import EXPERIMENTS
from grokscope.report.figures import list_figures
from grokscope.results import list_claims

ROOT = Path(__file__).resolve().parent.parent
# The public modules, in the order in which a reader meets them.
MODULES = (
    "grokscope",
    "grokscope.measures",
    "grokscope.interventions",
    "grokscope.spec",
    "grokscope.tasks",
    "grokscope.results",
)
WITHOUT_A_TEST = {
    "C9": "What lifting the penalty does to a ResNet, it also does to a vision transformer and to "
    "pre-trained language models."
}
HEAD = """# API reference

Made by `make docs` from the docstrings. The public names are those of these modules; everything
else may move without notice. The measures as the probe names them, with formula, range, direction
and cost, are in [measures.md](measures.md).
"""


def page() -> str:
    """The page as Markdown."""
    package = griffe.load("grokscope", search_paths=[ROOT / "src"], docstring_parser="google")
    parts = [HEAD]
    for module in MODULES:
        parts += _module(package, module)
    parts += ["\n## Experiments\n", *_experiments()]
    parts += ["\n## Claims\n", *_claims()]
    parts += ["\n## Figures\n", *_figures()]
    return "\n".join(parts).rstrip() + "\n"


def _module(package: Any, name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    yield f"\n## {name}\n"
    yield _prose((module.__doc__ or "").strip())
    for public in sorted(module.__all__, key=str.lower):
        target = getattr(module, public)
        home = getattr(target, "__module__", None)
        if not callable(target) or not str(home).startswith("grokscope"):
            continue
        path = f"{home}.{target.__qualname__}".removeprefix("grokscope.")
        found = package[path]
        yield f"\n### {public}\n"
        yield from _object(found, target)


def _object(found: Any, target: Any) -> Iterator[str]:
    """Signature and docstring; of a class also its settings, methods and properties."""
    function = found if found.is_function else found.members.get("__init__")
    if function is not None and not hasattr(target, "model_fields"):
        yield f"```python\n{_signature(found.name, function)}\n```\n"
    yield from _docstring(found)
    if hasattr(target, "model_fields"):
        yield from _settings(target)
    if not found.is_class:
        return
    for name, member in found.members.items():
        if name.startswith("_") or member.docstring is None:
            continue
        if member.is_function:
            yield f"#### {found.name}.{name}\n"
            yield f"```python\n{_signature(name, member)}\n```\n"
            yield from _docstring(member)
        elif "property" in member.labels:
            yield f"#### {found.name}.{name}\n"
            yield from _docstring(member)


def _docstring(found: Any) -> Iterator[str]:
    if found.docstring is None:
        return
    for section in found.docstring.parsed:
        kind = section.kind.value
        if kind == "text":
            yield _prose(section.value) + "\n"
        elif kind == "admonition":  # griffe's word for a section that it does not know
            yield f"```python\n{section.value.contents}\n```\n"
        else:
            yield f"**{kind.capitalize()}**\n"
            yield from (f"- {_item(item, kind)}" for item in section.value)
            yield ""


def _settings(target: Any) -> Iterator[str]:
    yield "**Settings**\n"
    for name, field in target.model_fields.items():
        default = (
            "required"
            if field.is_required()
            else f"default `{field.get_default(call_default_factory=True)!r}`"
        )
        text = f": {field.description}" if field.description else ""
        yield f"- `{name}` ({default}){text}"
    yield ""


def _item(item: Any, kind: str) -> str:
    name = str(item.annotation) if kind == "raises" else getattr(item, "name", "")
    text = _line(_prose(item.description))
    return f"`{name}`: {text}" if name else text


def _signature(name: str, function: Any) -> str:
    parameters, keyword = [], False
    for parameter in function.parameters:
        if parameter.name == "self":
            continue
        kind = parameter.kind.value
        if kind == "keyword-only" and not keyword:
            parameters.append("*")
            keyword = True
        text = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "") + parameter.name
        text += f": {parameter.annotation}" if parameter.annotation is not None else ""
        plain = kind.startswith("variadic") or parameter.default is None
        parameters.append(text if plain else f"{text} = {parameter.default}")
    result = (
        f" -> {function.returns}" if function.returns is not None and function.name == name else ""
    )
    line = f"{name}({', '.join(parameters)}){result}"
    return (
        line if len(line) <= 96 else f"{name}(\n    " + ",\n    ".join(parameters) + f",\n){result}"
    )


def _prose(text: str) -> str:
    """Docstring text as Markdown: formulas between dollars, references as code."""
    text = re.sub(r"\.\. math::((?:.|\n)*?)(?=\n\n|\Z)", lambda m: f"$${_line(m[1])}$$", text)
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    return text.replace("``", "`")


def _line(text: str) -> str:
    return " ".join(text.split())


def _experiments() -> Iterator[str]:
    yield "| name | what it asks | presets |"
    yield "|---|---|---|"
    for name, entry in EXPERIMENTS.items():
        experiment = entry()
        yield f"| `{name}` | {experiment.question} | {', '.join(entry.presets)} |"


def _claims() -> Iterator[str]:
    yield "| claim | in words | to bear in mind |"
    yield "|---|---|---|"
    rows = {claim.id: f"{claim.statement} | {claim.note}" for claim in list_claims()}
    rows |= {
        name: f"{WITHOUT_A_TEST[name]} | There is no test for it yet." for name in WITHOUT_A_TEST
    }
    yield from (f"| {name} | {rows[name]} |" for name in sorted(rows, key=_number))


def _number(name: str) -> int:
    return int(name.removeprefix("C"))


def _figures() -> Iterator[str]:
    yield "| name | what it shows |"
    yield "|---|---|"
    for name, figure in list_figures().items():
        yield f"| `{name}` | {_line((inspect.getdoc(figure) or '').partition(chr(10) * 2)[0])} |"


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")
