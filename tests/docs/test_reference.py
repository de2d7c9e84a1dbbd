"""The reference is complete: every verb, option, rule, error, recipe key and public name stands in the built pages."""

import html
import importlib
import inspect
import re

import pytest

pytest.importorskip("mkdocs", reason="the site needs MkDocs: pip install 'msconv-deploy[docs]'")

from docs.generate import (
    command_line,
    exit_codes,
    markdown,
    python_api,
    refusals,
    rule_catalogue,
    rule_examples,
    schemas,
)
from docs.generate.docstrings import written_out
from msconv_deploy import errors
from msconv_deploy.cli.main import main
from tests.docs.site import ROOT, built_site


@pytest.fixture(scope="module")
def site():
    return built_site()


def words(text):
    """What a reader sees, with single spaces."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", text)))


# -- the command line --------------------------------------------------------------------------------------------------

VERBS = {verb.name: verb for verb in command_line.verbs()}


def help_of(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    return capsys.readouterr().out


def test_every_verb_of_the_help_is_known(capsys):
    listed = set()
    for line in help_of("", capsys).splitlines():
        if found := re.match(r"^(?:[│|]| ) ([a-z]+)  ", line):
            listed.add(found[1])
    assert listed == {name.split()[0] for name in VERBS}
    for group in {name.split()[0] for name in VERBS if " " in name}:
        inner = {
            m[1] for line in help_of(group, capsys).splitlines() if (m := re.match(r"^(?:[│|]| ) ([a-z]+)  ", line))
        }
        assert inner == {name.split()[1] for name in VERBS if name.startswith(f"{group} ")}


@pytest.mark.parametrize("name", VERBS)
def test_every_option_of_the_help_is_in_the_page(name, site, capsys):
    page = site.text("reference/command_line.html")
    anchor = f'id="msconv-{name.replace(" ", "-")}"'
    assert anchor in page
    part = words(page[page.index(anchor) :].split("<h2")[0])
    options = set(re.findall(r"--[a-z][a-z0-9-]*", help_of(name, capsys))) - {"--help"}
    assert {"--json", "--force"} <= options
    for option in options:
        assert option in part, f"msconv {name}: {option}"
    for parameter in VERBS[name].parameters:
        assert parameter.meaning, f"{parameter.names} has no help"
        assert " ".join(parameter.meaning.replace("`", "").split())[:40] in part


def test_kinds_and_defaults():
    options = {p.names: p for p in VERBS["optimize"].parameters}
    assert (options["--when"].kind, options["--when"].default) == ("faster or always", "faster")
    assert options["--verify / --no-verify"].default == "--verify"
    assert options["-o, --output"].required
    assert (options["--force"].kind, options["--force"].default) == ("flag", "")
    assert {p.names: p.kind for p in VERBS["engine build"].parameters}["--optimization-level"] == "integer, 0 to 5"
    assert VERBS["optimize"].usage == "msconv optimize MODEL.onnx -o OUT.onnx [OPTIONS]"
    assert "--form portable|fused|plugin" in VERBS["convert"].usage


def test_words_in_angle_brackets_are_read(site):
    page = words(site.text("reference/command_line.html"))
    assert "OUTPUT_DIR/<recipe>/" in page
    assert "libmsconv_trt<major>.so" in page


def test_the_specification_says_which_options_every_verb_takes():
    text = " ".join((ROOT / "docs" / "spec.md").read_text(encoding="utf-8").split())
    sentence = re.search(r"Every verb takes (.+?); those that draw random numbers \((.+?)\) also (.+?)\.", text)
    assert sentence is not None
    shared, random, seed = (set(re.findall(r"`(.+?)`", part)) for part in sentence.groups())
    taken = {
        name: {option for p in verb.parameters if not p.is_argument for option in re.split(r" / |, ", p.names)}
        for name, verb in VERBS.items()
    }
    for name, options in taken.items():
        assert {option.split()[0] for option in shared} <= options, name
    assert random == {name for name, options in taken.items() if seed <= options}


# -- errors ------------------------------------------------------------------------------------------------------------


def test_every_exit_code_and_error_is_in_the_page(site):
    page = words(site.text("reference/exit_codes.html"))
    table = markdown.section(ROOT / "docs" / "spec.md", "Exit codes")
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == {int(code) for code in errors.ExitCode}
    found = set(exit_codes.error_classes())
    assert found == {c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.MsconvError)}
    for kind in found:
        assert kind.__name__ in page
        assert words(inspect.getdoc(kind)) in page


# -- rules -------------------------------------------------------------------------------------------------------------


def test_every_rule_is_in_the_page_with_its_example(site):
    page = site.text("reference/rules.html")
    modules = rule_catalogue.rule_modules()
    files = {path.stem for path in (ROOT / "msconv_deploy" / "surgery" / "rules").glob("*.py")}
    assert {m.__name__.rpartition(".")[2] for m in modules} == files - {"__init__", "msconv_node"}
    assert {m.ID for m in modules} == {example.rule for example in rule_examples.EXAMPLES}
    for module in modules:
        assert f'<h2 id="{module.ID}"' in page
    for example in rule_examples.EXAMPLES:
        assert example.left_because in words(page)


@pytest.mark.parametrize("example", rule_examples.EXAMPLES, ids=lambda example: example.rule)
def test_examples_show_what_they_say(example):
    outcome = rule_examples.run(example)
    assert outcome.site.rule == example.rule
    assert outcome.difference < 1e-5
    assert outcome.before != outcome.after
    assert outcome.after.largest <= outcome.before.largest
    module = next(m for m in rule_catalogue.rule_modules() if example.rule == m.ID)
    patterns = [
        re.escape(reason).replace(re.escape(refusals.GAP), ".+") for reason in rule_catalogue.reasons_of(module)
    ]
    assert any(re.fullmatch(pattern, outcome.refusal) for pattern in patterns), outcome.refusal


def test_a_rule_without_an_example_is_an_error_that_says_what_to_add(monkeypatch):
    kept = tuple(example for example in rule_examples.EXAMPLES if example.rule != "merge-convs")
    monkeypatch.setattr(rule_catalogue, "EXAMPLES", kept)
    with pytest.raises(ValueError, match=r"merge-convs has no example: add .* in docs/generate/rule_examples\.py"):
        rule_catalogue.page()


def test_an_example_that_shows_nothing_is_an_error():
    example = next(e for e in rule_examples.EXAMPLES if e.rule == "merge-convs")
    swapped = rule_examples.Example(example.rule, "", example.left, example.graph, "")
    with pytest.raises(ValueError, match="shows nothing"):
        rule_examples.run(swapped)


def test_reasons_are_found_however_they_are_made(tmp_path):
    source = tmp_path / "rule.py"
    source.write_text(
        'NOT = "no"\n'
        'def match(n):\n    if n:\n        return Refusal("plain")\n    reason = f"of {n} kinds" if n else "one"\n'
        "    problem = _problem(n)\n    if problem:\n        return Refusal(problem)\n"
        "    return Refusal(reason) or Refusal(NOT)\n"
        'def _problem(n):\n    return f"{n} is bad" if n else ""\n'
        'def objection():\n    return "slow"\n'
        'def other():\n    return Refusal("elsewhere")\n'
    )
    found = refusals.reasons(source, ("objection",), ("other",))
    assert set(found) == {"plain", "of … kinds", "one", "no", "… is bad", "slow"}


# -- recipes and reports -----------------------------------------------------------------------------------------------


def test_every_key_of_a_recipe_is_in_the_page(site):
    page = words(site.text("reference/recipes.html"))
    keys = [key for key in schemas.recipe.Recipe.model_fields if key != "path"]
    assert "model" in keys
    for key in keys:
        assert f"[{key}" in page, key
    for section in ("ModelSection", "InputSection", "ExportSection", "ValidationSection"):
        for key in getattr(schemas.recipe, section).model_fields:
            assert re.search(rf"\b{key}\b", page), key


def test_every_field_of_every_report_is_in_the_page(site):
    page = site.text("reference/reports.html")
    models = schemas.report_models()
    verbs = {model.model_fields["verb"].default for model in models}
    assert {verb for verb in VERBS if verb != "export"} <= verbs | {"export"}
    for model in models:
        assert f">{model.__name__}<" in page
        for kind in (model, *schemas.parts_of(model)):
            for field in kind.model_fields:
                assert f"<code>{field}</code>" in page, f"{kind.__name__}.{field}"


# -- Python ------------------------------------------------------------------------------------------------------------

PACKAGES = [path.parent.name for path in sorted((ROOT / "msconv_deploy").glob("*/__init__.py"))]


def test_every_package_has_a_page(site):
    described = {page.package for page in python_api.PAGES}
    assert set(PACKAGES) - {"cli"} <= described
    for page in python_api.PAGES:
        assert (site.folder / page.uri.replace(".md", ".html")).exists()


@pytest.mark.parametrize("page", python_api.PAGES, ids=lambda page: page.package)
def test_every_public_name_is_in_the_page(page, site):
    text = site.text(page.uri.replace(".md", ".html"))
    for name, place in python_api.public_names(page.package).items():
        assert f'id="{place}"' in text, f"{page.dotted}.{name}"
    for module in page.modules:
        assert f'id="{page.dotted}.{module}.' in text, f"{page.dotted}.{module} shows nothing"
        path = ROOT / "msconv_deploy" / page.package / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists()


def test_public_names_are_those_of_the_import():
    """Read from the source, since the site is built without torch; here compared where nothing heavy is needed."""
    for package in ("optimizing", "validation", "reporting", "runtimes"):
        module = importlib.import_module(f"msconv_deploy.{package}")
        assert sorted(python_api.public_names(package)) == sorted(module.__all__)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def test_docstrings_become_markdown():
    assert markdown.prose("see :func:`other`, ``a*b`` or kh*kw") == r"see `other`, ``a*b`` or kh\*kw"
    assert markdown.prose("DIR/<name>, `<x>`") == "DIR/&lt;name>, `<x>`"
    assert markdown.cell("`<x>` <y> <https://a.b>") == "`<x>` &lt;y> <https://a.b>"
    assert markdown.prose("so\n\n    a*b\n\nbut a*b") == "so\n\n    a*b\n\n" + r"but a\*b"
    assert (
        written_out("Args:\n    a, b: numbers\n    c: one\n") == "Args:\n    a: numbers\n    b: numbers\n    c: one\n"
    )
    assert written_out("Raises:\n    OneError, OtherError\n").count("as its name says") == 2


def test_sections_of_pages(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# T\n\n## One\n\ntext\n\n## Two\n\nmore\n")
    assert markdown.section(page, "One") == "text\n"
    with pytest.raises(ValueError, match="no heading 'Three'"):
        markdown.section(page, "Three")
