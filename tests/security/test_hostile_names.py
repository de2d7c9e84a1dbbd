"""Names in a model are text and nothing else: in the terminal, in rich's markup, in the HTML report, in the log."""

import io
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest

from msconv_deploy.cli import terminal
from msconv_deploy.cli.common import progress_line, start
from msconv_deploy.cli.main import main
from msconv_deploy.cli.terminal import make_console, printable
from msconv_deploy.files import write_bytes
from tests.security.hostile_models import ESCAPE, HOSTILE, HTML, hostile_model
from tests.tile_models import plain_conv, tiled_conv

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture
def model(tmp_path):
    return hostile_model(tmp_path / "m.onnx")


def run(capfd, *arguments: object) -> tuple[int, str]:
    code = main([str(a) for a in arguments])
    out, err = capfd.readouterr()
    assert not CONTROL.search(out + err), f"reached the terminal: {CONTROL.search(out + err)!r}"
    assert "Traceback" not in out + err
    return code, out + err


def test_every_verb_prints_control_characters_as_pictures(model, tmp_path, capfd):
    folder = tmp_path / "out"
    code, said = run(capfd, "inspect", model)
    assert code == 0
    assert "␛[2J␛]52" in said
    code, said = run(capfd, "optimize", model, "-o", folder / "o.onnx", "--when", "always", "-v")
    assert code == 0, said
    assert "<script>" in said  # the names are shown, in full
    assert run(capfd, "diff", model, folder / "o.onnx")[0] == 0
    assert run(capfd, "validate", folder / "o.onnx", "--reference", model)[0] == 0
    assert run(capfd, "convert", model, "--form", "portable", "-o", folder / "c.onnx")[0] == 0


def test_refusals_print_control_characters_as_pictures(model, tmp_path, capfd):
    broken = onnx.load(model)
    broken.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    broken.graph.initializer[0].external_data.add(key="location", value=f"../{ESCAPE}")
    (tmp_path / "broken.onnx").write_bytes(broken.SerializeToString())
    code, said = run(capfd, "inspect", tmp_path / "broken.onnx")
    assert code == 2
    assert "not inside the model's folder" in said


def test_a_model_that_differs_is_reported_with_printable_names(model, tmp_path, capfd):
    other = onnx.load(model)
    bias = next(w for w in other.graph.initializer if w.name.startswith("b1"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(other, tmp_path / "other.onnx")
    assert run(capfd, "validate", tmp_path / "other.onnx", "--reference", model)[0] == 1


def test_names_of_files_are_printable_too(tmp_path, capfd):
    path = plain_conv(tmp_path / "m\x1b[31m.onnx")
    assert run(capfd, "inspect", path)[0] == 0
    assert run(capfd, "inspect", tmp_path / "absent\x1b[31m.onnx")[0] == 2


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2066, 0xDC80])
def test_printable_leaves_no_control_character(code):
    shown = printable(f"a{chr(code)}b")
    assert len(shown) == 3
    assert not CONTROL.search(shown)
    assert (shown == f"a{chr(code)}b") == (chr(code) in "\n\t")


def test_printable_leaves_text_alone():
    text = "x → y × 3, größer, 卷积, 🙂, é\tb\nc"
    assert printable(text) == text


def test_colours_of_our_own_stay(monkeypatch):
    """On a terminal: what rich colours is coloured, what a name brings is not."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = make_console()
    console.file = io.StringIO()
    console.print("[green]passed[/]: ", end="")
    console.print(ESCAPE, markup=False)
    shown = console.file.getvalue()
    assert "\x1b[32mpassed\x1b[0m" in shown
    assert not CONTROL.search(shown.replace("\x1b[32m", "").replace("\x1b[0m", ""))


@pytest.mark.parametrize("forced", [False, True], ids=["pipe", "terminal"])
def test_steps_are_no_markup(monkeypatch, capfd, forced):
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_line(quiet=False) as progress:
        progress(f"looking into {HOSTILE}")
    assert "\x1b]52" not in capfd.readouterr().err


def test_log_lines_are_printable(capfd):
    start(quiet=False, verbose=0)
    logging.getLogger("msconv_deploy.test").warning("node %s", HOSTILE)
    said = capfd.readouterr().err
    assert "␛]52" in said
    assert not CONTROL.search(said)


def test_long_words_cost_no_more_than_their_length():
    """A search that begins anew at every letter takes minutes here."""
    words = ["n" * 4_090, "m" * 4_096, "k" * 4_097] * 200
    cut = terminal.line(" ".join(words)).split()
    assert cut[0:2] == words[0:2]
    assert cut[2] == "k" * 2_045 + "..." + "k" * 2_048
    assert len(cut) == len(words)


def test_endless_names_are_cut_on_a_console_too(capfd):
    terminal.say_on(terminal.make_console(), "at " + "k" * 20_000)
    assert capfd.readouterr().out == "at " + "k" * 2_045 + "..." + "k" * 2_048 + "\n"


def test_endless_names_are_cut_where_they_are_no_cells(capfd):
    """Found by fuzzing: a symbolic dimension of 20,000 letters was logged at every size."""
    start(quiet=False, verbose=1)
    path = "/".join(["folder"] * 500)
    logging.getLogger("msconv_deploy.somewhere").info("at %s: %s", path, "n" * 20_000)
    terminal.say("n" * 20_000 + " and so on")
    out, err = capfd.readouterr()
    assert path in err
    assert len(err) < 4096 + len(path) + 100
    assert out == "n" * 2045 + "..." + "n" * 2048 + " and so on\n"


def test_everything_that_the_program_prints_goes_through_terminal():
    """A new verb cannot forget it: no other module of the command line makes a console or calls echo."""
    found = []
    for path in sorted(Path(terminal.__file__).parent.glob("*.py")):
        if path.name == "terminal.py":
            continue
        text = path.read_text().replace("console.print(", "")
        found += [(path.name, call) for call in re.findall(r"\bConsole\(|typer\.s?echo\(|\bprint\(", text)]
    assert found == []


class Page(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href", "action", "srcset")]

    handle_startendtag = handle_starttag


def test_names_are_text_in_the_html_report(tmp_path, capfd):
    model = hostile_model(tmp_path / "m.onnx")
    page = tmp_path / "report.html"
    code, _ = run(capfd, "optimize", model, "-o", tmp_path / "o.onnx", "--when", "always", "--html", page)
    assert code == 0
    harmless = tmp_path / "harmless.html"
    plain = tiled_conv(tmp_path / "plain.onnx")
    run(capfd, "optimize", plain, "-o", tmp_path / "p.onnx", "--when", "always", "--html", harmless)
    attacked, expected = Page(page.read_text()), Page(harmless.read_text())
    assert attacked.tags == expected.tags  # no name adds a tag or an attribute
    assert attacked.attributes == expected.attributes
    assert attacked.links == []
    assert not {"script", "img", "iframe"} & attacked.tags
    assert not any(name.startswith("on") for name in attacked.attributes)
    assert "&lt;script&gt;" in page.read_text()
    assert HTML not in page.read_text()


def test_reports_keep_the_names_as_they_are(tmp_path, capfd):
    """JSON has its own escapes: a program that reads the report gets the name of the model."""
    model = hostile_model(tmp_path / "m.onnx")
    assert run(capfd, "inspect", model, "--json", tmp_path / "r.json")[0] == 0
    text = (tmp_path / "r.json").read_text()
    assert "\x1b" not in text
    assert json.loads(text)["sites"][0]["node"].endswith(HOSTILE)


def test_a_file_that_is_no_model_is_not_quoted(tmp_path, capfd):
    write_bytes(tmp_path / "m.onnx", ESCAPE.encode() * 10)
    assert run(capfd, "inspect", tmp_path / "m.onnx")[0] == 2
