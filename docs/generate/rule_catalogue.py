"""The catalogue of rules: their docstrings, what each does to a small graph, and why it leaves others."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from docs.generate import ROOT
from docs.generate.markdown import prose, table
from docs.generate.refusals import reasons
from docs.generate.rule_examples import EXAMPLES, Example, Outcome, run
from msconv_deploy.reporting.numbers import bytes_text, count_text, difference_text
from msconv_deploy.surgery import rules
from msconv_deploy.surgery.optimize import OPTIONAL

_SURGERY = ROOT / "msconv_deploy" / "surgery"


@dataclass(frozen=True)
class Source:
    """A module that gives reasons.

    Attributes:
        functions: of the module, which return reasons.
        without: functions of the module, whose reasons do not concern the rule.
    """

    path: str
    functions: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


_CONTRACTION = Source("engine/contraction.py")
_UNFOLD = (Source("rules/unfold_matmul.py"), Source("engine/products.py"), Source("engine/windows.py"))
_BROADCASTS = Source("broadcasts.py", ("_objection",))
_SOURCES = {
    "tile-concat-conv": (_CONTRACTION, Source("rules/msconv_node.py")),
    "sink-broadcast": (_BROADCASTS,),
    "drop-expand": (_BROADCASTS,),
    "unfold-matmul": _UNFOLD[1:],
    "unfold-channel-sum": _UNFOLD,
    "unfold-max": (_UNFOLD[2],),
    "merge-convs": (Source("merges.py"), Source("engine/contraction.py", without=("_product",))),
    "tiled-distance": (Source("distances.py"),),
}
"""Where reasons come from beside the rule's own module."""


def rule_modules() -> list[ModuleType]:
    """The modules of ``surgery.rules`` that are rules: those with an id."""
    names = [module.name for module in pkgutil.iter_modules(rules.__path__)]
    found = [importlib.import_module(f"{rules.__name__}.{name}") for name in names]
    order = [example.rule for example in EXAMPLES]
    return sorted(
        (module for module in found if hasattr(module, "ID")),
        key=lambda module: order.index(module.ID) if module.ID in order else len(order),
    )


def page() -> str:
    """The page.

    Raises:
        ValueError: a rule has no example.
    """
    found = rule_modules()
    examples = {example.rule: example for example in EXAMPLES}
    for module in found:
        if module.ID not in examples:
            raise ValueError(
                f"the rule {module.ID} has no example: add an Example with a graph that it rewrites and one that it leaves to "
                "EXAMPLES in docs/generate/rule_examples.py"
            )
    parts = [
        "# Rules",
        "Every rewrite of `msconv optimize` is one of these, in this order; after the last one it starts again, until nothing "
        "changes. Each text below is that of the rule's module, and each example was run when this page was built, with every "
        "valid site rewritten (`--when always`).",
        table(["rule", ""], ((f"[`{module.ID}`](#{module.ID})", _summary(module)) for module in found)),
    ]
    for module in found:
        parts += [f"## {module.ID}", f"**{_summary(module)}**", _body(module)]
        if module.ID in OPTIONAL:
            parts.append(f'!!! note "Off by default"\n\n    Applied only with `--allow {module.ID}`.')
        parts += [*_example(examples[module.ID]), _reasons(module)]
    return "\n\n".join(parts)


def _summary(module: ModuleType) -> str:
    first = (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")
    text = first.partition(": ")[2]
    return text[:1].upper() + text[1:]


def _body(module: ModuleType) -> str:
    return prose((inspect.getdoc(module) or "").partition("\n\n")[2])


def _example(example: Example) -> list[str]:
    outcome = run(example)
    return [
        f"**For example:** {example.title[:1].lower()}{example.title[1:]}.",
        f"```text\n{_shortened(example.graph.text)}\n```",
        _numbers(outcome),
        f"**Left** where {example.left_because}: *{outcome.refusal}*.",
    ]


def _numbers(outcome: Outcome) -> str:
    before, after, site = outcome.before, outcome.after, outcome.site
    rows = [
        ("nodes", before.nodes, after.nodes),
        ("operators", before.operators, after.operators),
        ("largest tensor written", bytes_text(before.largest), bytes_text(after.largest)),
    ]
    if site.bytes_before is not None and site.bytes_after is not None:
        rows.append(("read and written by the site", bytes_text(site.bytes_before), bytes_text(site.bytes_after)))
    if site.macs_before:
        assert site.macs_after is not None
        rows.append(("multiply-accumulates", count_text(site.macs_before), count_text(site.macs_after)))
    rows.append(("difference of the outputs", "", difference_text(outcome.difference)))
    return table(["", "before", "after"], rows)


def _shortened(text: str) -> str:
    """Without the elements of long constants, and with the results on a line of their own."""
    lines = []
    for line in text.replace(") => (", ")\n    => (", 1).splitlines():
        start, brace, rest = line.partition("{")
        long = brace and len(rest) > 80
        lines.append(f"{start}{{{', '.join(rest.split(', ')[:4])}, …}}>()" if long else line)
    return "\n".join(lines)


def reasons_of(module: ModuleType) -> list[str]:
    """Why a rule leaves a graph alone."""
    assert module.__file__ is not None
    found = reasons(Path(module.__file__))
    for source in _SOURCES.get(module.ID, ()):
        found += reasons(_SURGERY / source.path, source.functions, source.without)
    return list(dict.fromkeys(found))


def _reasons(module: ModuleType) -> str:
    listed = "\n".join(f"    - {reason}" for reason in reasons_of(module))
    return (
        '??? question "Why it leaves a graph alone"\n\n'
        "    The reasons in its code and in code that it shares with other rules, where … is filled in; "
        f"`msconv inspect` names the nodes too.\n\n{listed}\n"
    )
