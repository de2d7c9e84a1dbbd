"""`msconv optimize`: what is written and what is not, exit codes, and one message for every kind of bad input."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from msconv_deploy.cli.main import main
from msconv_deploy.errors import ExitCode
from msconv_deploy.files import sha256_of
from msconv_deploy.model_files import read_model
from msconv_deploy.reporting import OptimizeReport
from msconv_deploy.surgery.rules import tile_concat_conv
from tests.surgery.graphs import Net
from tests.tile_models import plain_conv, tiled_conv

ALWAYS = ["--when", "always"]
ZOO = Path(__file__).parents[2] / ".." / "shared" / "zoo"


@pytest.fixture
def model(tmp_path):
    return tiled_conv(tmp_path / "m.onnx")


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["optimize", *map(str, arguments)])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def report_of(path: Path) -> OptimizeReport:
    return OptimizeReport.model_validate_json(path.read_text())


def make_rewrites_wrong(monkeypatch):
    """Every rewrite gets one weight of a term wrong."""
    right = tile_concat_conv.rewrite

    def wrong(*arguments):
        builder = right(*arguments)
        name, array = next((n, a) for n, a in builder.constants.items() if np.asarray(a).dtype.kind == "f")
        changed = np.array(array)
        changed.reshape(-1)[0] += 0.1
        builder.constants[name] = changed
        return builder

    monkeypatch.setattr(tile_concat_conv, "rewrite", wrong)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- what is written -----------------------------------------------------------------------------------------------


def test_a_site_is_rewritten_verified_and_reported(model, tmp_path, capsys):
    before = model.read_bytes()
    out = tmp_path / "deep" / "o.onnx"
    extra = ["--html", tmp_path / "o.html", "--json", tmp_path / "r.json", "--seed", "7"]
    code, said, _ = run(capsys, model, "-o", out, *ALWAYS, *extra)
    assert code == ExitCode.OK
    assert model.read_bytes() == before
    report = report_of(out.with_suffix(".json"))
    assert report == report_of(tmp_path / "r.json")
    assert report.verdict == "passed"
    assert report.seed == 7
    assert report.model_sha256 == sha256_of(model)
    assert report.output_sha256 == sha256_of(out)
    assert report.rules == ["tile-concat-conv"]
    assert [site.node for site in report.rewritten] == ["first"]
    assert report.before.macs > report.after.macs
    assert report.after.nodes == len(read_model(out).graph.node)
    assert report.after.bytes == out.stat().st_size
    assert report.versions["onnxruntime"]
    assert {"read", "optimize", "verify", "count"} <= set(report.timings)
    assert {row.output for row in report.verification.sites} == {"t1"}
    assert {row.output for row in report.verification.outputs} == {"y"}
    assert all(row.tolerance > 0 for row in report.verification.comparisons)
    for text in ("first", "16 of 19", "rewritten", "MACs", "size", "passed: "):
        assert text in said
    page = (tmp_path / "o.html").read_text()
    assert page.count("<svg") >= 3
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert "<script" not in page


def test_interface_opset_and_metadata_stay(model, tmp_path, capsys):
    assert run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS)[0] == 0
    old, new = read_model(model), read_model(tmp_path / "o.onnx")
    onnx.checker.check_model(str(tmp_path / "o.onnx"))
    assert list(old.graph.input) == list(new.graph.input)
    assert list(old.graph.output) == list(new.graph.output)
    assert list(old.opset_import) == list(new.opset_import)
    assert old.ir_version == new.ir_version
    assert list(old.metadata_props) == list(new.metadata_props)


def test_a_second_run_changes_nothing_byte_for_byte(model, tmp_path, capsys):
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    assert run(capsys, model, "-o", one, *ALWAYS)[0] == 0
    code, said, _ = run(capsys, one, "-o", two, *ALWAYS)
    assert code == 0
    assert "nothing was rewritten" in said
    assert one.read_bytes() == two.read_bytes()
    assert report_of(two.with_suffix(".json")).unchanged


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_report_is_not_where_weights_may_go(model, tmp_path, capsys, option):
    code, _, err = run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, option, tmp_path / "o.onnx.data")
    assert code == ExitCode.BAD_INPUT
    assert "o.onnx.data: is where weights of the output may go" in err
    assert not (tmp_path / "o.onnx").exists()


def test_the_sidecar_by_another_spelling(model, tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    places = ["-o", tmp_path / "o.onnx", "--json", tmp_path / "deep" / ".." / "o.json"]
    assert run(capsys, model, *places, *ALWAYS)[0] == ExitCode.OK
    assert report_of(tmp_path / "o.json").verdict == "passed"


def test_names_that_are_no_text_are_shown_as_they_can_be(model, tmp_path, capsys):
    """A file name is bytes to Linux."""
    place = tmp_path / os.fsdecode(b"o\xff.onnx")
    assert run(capsys, model, "-o", place, *ALWAYS, "--html", tmp_path / "o.html")[0] == ExitCode.OK
    assert "o\\udcff.onnx" in (tmp_path / "o.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("opset", [11, 13, 18, 23])
def test_opsets(tmp_path, capsys, opset):
    model = tiled_conv(tmp_path / "m.onnx", opset)
    assert run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, "--json", tmp_path / "o.json")[0] == 0
    assert read_model(tmp_path / "o.onnx").opset_import[0].version == opset


def test_the_same_input_gives_the_same_bytes(model, tmp_path, capsys):
    for name in ("one", "two"):
        assert run(capsys, model, "-o", tmp_path / f"{name}.onnx", *ALWAYS)[0] == 0
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


@pytest.mark.parametrize("external", [False, True])
def test_a_model_without_sites_is_copied_byte_for_byte(tmp_path, capsys, external):
    model = plain_conv(tmp_path / "m.onnx", external)
    out = tmp_path / "elsewhere" / "o.onnx"
    assert run(capsys, model, "-o", out, *ALWAYS)[0] == 0
    assert out.read_bytes() == model.read_bytes()
    if external:
        assert (out.parent / "plain.weights").read_bytes() == (tmp_path / "plain.weights").read_bytes()
    assert run(capsys, model, "-o", tmp_path / "beside.onnx", *ALWAYS)[0] == 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["o.json", "o.onnx", *["plain.weights"] * external]


def test_external_data_is_rewritten_into_a_file_of_its_own(tmp_path, capsys):
    model = tiled_conv(tmp_path / "m.onnx", external=True)
    weights = (tmp_path / "m.onnx.weights").read_bytes()
    out, again = tmp_path / "out" / "o.onnx", tmp_path / "again" / "o.onnx"
    assert run(capsys, model, "-o", out, *ALWAYS)[0] == 0
    assert report_of(out.with_suffix(".json")).written == [str(out), f"{out}.data"]
    onnx.checker.check_model(str(out))
    assert (tmp_path / "m.onnx.weights").read_bytes() == weights
    assert run(capsys, out, "-o", again, *ALWAYS)[0] == 0
    assert again.read_bytes() == out.read_bytes()
    assert Path(f"{again}.data").read_bytes() == Path(f"{out}.data").read_bytes()


def test_the_input_is_replaced_with_force_only(model, capsys):
    before = model.read_bytes()
    code, _, err = run(capsys, model, "-o", model, *ALWAYS)
    assert code == ExitCode.BAD_INPUT
    assert "is the input" in err
    assert model.read_bytes() == before
    assert run(capsys, model, "-o", model, *ALWAYS, "--force")[0] == 0
    assert model.read_bytes() != before
    rewritten = model.read_bytes()
    assert run(capsys, model, "-o", model, *ALWAYS, "--force")[0] == 0
    assert model.read_bytes() == rewritten


def test_quiet_prints_the_verdict_only(model, tmp_path, capsys):
    code, out, err = run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, "-q")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1


# -- verification --------------------------------------------------------------------------------------------------


def test_a_wrong_rewrite_is_caught_and_not_written(model, tmp_path, capsys, monkeypatch):
    make_rewrites_wrong(monkeypatch)
    before = snapshot(tmp_path)
    code, out, _ = run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, "--json", tmp_path / "r.json")
    assert code == ExitCode.OUTPUTS_DIFFER
    assert "no model was written" in out
    assert "first diverging tensor: t1" in out
    after = snapshot(tmp_path)
    report = after.pop("r.json")
    assert after == before
    assert json.loads(report)["verdict"] == "differ"


def test_a_failed_result_is_kept_on_request(model, tmp_path, capsys, monkeypatch):
    make_rewrites_wrong(monkeypatch)
    assert run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, "--keep-failed")[0] == ExitCode.OUTPUTS_DIFFER
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "o.failed.onnx"]
    onnx.checker.check_model(str(tmp_path / "o.failed.onnx"))


def test_without_verification_the_file_is_written_and_says_so(model, tmp_path, capsys):
    code, out, _ = run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, "--no-verify")
    assert code == 0
    assert "verification was not asked for" in out
    assert report_of(tmp_path / "o.json").verdict == "unverified"


def test_an_insensitive_site_is_unverified_and_not_written(tmp_path, capsys):
    model = tiled_conv(tmp_path / "m.onnx", tiled_weight=0.0)
    code, out, _ = run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, "--json", tmp_path / "r.json")
    assert code == ExitCode.NOT_AVAILABLE
    assert "insensitive: moving the tiled operand does not move t1" in out
    assert not (tmp_path / "o.onnx").exists()
    assert report_of(tmp_path / "r.json").verification.insensitive_sites == ["t1"]


def test_a_model_without_contractions_saves_nothing(tmp_path, capsys):
    """No percentage of no work, and no empty parentheses either."""
    net = Net()
    copies = net.node("Expand", net.input(1, 4, 1, 1), net.ints(1, 4, 64, 64))
    net.output(net.node("Concat", net.node("Neg", net.input(1, 4, 64, 64)), net.node("Sigmoid", copies), axis=1))
    onnx.save(net.model(), tmp_path / "m.onnx")
    code, said, _ = run(capsys, tmp_path / "m.onnx", "-o", tmp_path / "o.onnx")
    assert code == 0
    assert "MACs 0 → 0; nodes 4 → 4" in said


def test_a_model_that_runs_at_no_size_is_unverified(tmp_path, capsys):
    """It adds a constant of extent 7 to an axis that is never 7 by default."""
    model = onnx.load(tiled_conv(tmp_path / "m.onnx"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", 1, ["N", 2, "H", "W"]))
    model.graph.node.append(helper.make_node("Add", ["y", "seven"], ["z"], "fixed"))
    model.graph.initializer.append(helper.make_tensor("seven", 1, [1, 1, 7, 1], np.ones(7)))
    onnx.save(model, tmp_path / "m.onnx")
    out = tmp_path / "o.onnx"
    code, said, _ = run(capsys, tmp_path / "m.onnx", "-o", out, *ALWAYS)
    # extent 1 broadcasts, so one default size is usable; the others are refused by the original itself
    assert code == 0
    assert "refused by the original, or not defined there: N=1,H=32,W=48" in said
    out.unlink()
    code, said, _ = run(capsys, tmp_path / "m.onnx", "-o", out, *ALWAYS, "--input-shape", "x:2x3x7x9", "--force")
    assert code == 0
    assert "compared at: N=2,H=7,W=9" in said


def test_inputs_from_a_file_and_ranges(model, tmp_path, capsys):
    np.savez(tmp_path / "in.npz", x=np.ones((1, 3, 6, 5), np.float32))
    arguments = ["--inputs", tmp_path / "in.npz", "--input-range", "s:0:2"]
    assert run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, *arguments)[0] == 0
    report = report_of(tmp_path / "o.json")
    assert report.verification.cases[0].origin == "file"
    assert report.input_ranges == {"s": (0.0, 2.0)}
    assert report.macs_size["x"] == [1, 3, 6, 5]


# -- bad input -----------------------------------------------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_a_model(path):
    path.write_text("this is not a model")


def edited(change):
    def apply(path):
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return apply


def with_opset(version):
    def change(model):
        model.opset_import[0].version = version

    return edited(change)


def misspelt(model):
    model.graph.node[-1].op_type = "Convolve"


def unsorted(model):
    model.graph.node[-1].input[0] = "nowhere"


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (truncated, [], "m.onnx: not an ONNX model, or truncated"),
        (not_a_model, [], "m.onnx: not an ONNX model"),
        (Path.unlink, [], "m.onnx: no such file"),
        (edited(misspelt), [], "m.onnx: the model is not valid ONNX: No Op registered for Convolve"),
        (edited(unsorted), [], "m.onnx: the model is not valid ONNX"),
        (with_opset(10), [], "opset 10 is not supported, only 11 to 28"),
        (with_opset(29), [], "opset 29 is not supported, only 11 to 28"),
        (None, ["--input-shape", "z:1x3x8x8"], "the model has no such input; known are x, s"),
        (None, ["--input-shape", "x:1x3x8"], "rank 3, but the model has Nx3xHxW"),
        (None, ["--input-shape", "x:1x4x8x8"], "which fixes 3"),
        (None, ["--input-shape", "x:1x3x8x8", "--input-shape", "s:2x16"], "N is 1 in another input"),
        (None, ["--input-shape", "x=1x3"], "write NAME:EXTENTxEXTENT"),
        (None, ["--input-shape", "x:1x3x8x8", "--input-shape", "x:1x3x8x8"], "x is given twice"),
        (None, ["--input-range", "z:0:1"], "the model has no such input"),
        (None, ["--inputs", "absent.npz"], "absent.npz: no such file"),
        (None, ["--json", "m.onnx"], "m.onnx: "),
        (None, ["--html", "o.onnx"], "o.onnx: is named for two outputs"),
        (None, ["--json", "o.onnx"], "o.onnx: is named for two outputs"),
        (None, ["--input-shape", "x:1x3x99999x99999"], "too large to test"),
        (None, ["--when", "sometimes"], "sometimes"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(model, tmp_path, monkeypatch, capsys, spoil, arguments, message):
    monkeypatch.chdir(tmp_path)
    if spoil is not None:
        spoil(model)
    before = snapshot(tmp_path)
    code, _, err = run(capsys, "m.onnx", "-o", "o.onnx", *ALWAYS, *arguments)
    assert code == ExitCode.BAD_INPUT
    assert message in " ".join(err.replace("│", " ").split())
    assert snapshot(tmp_path) == before


def test_outputs_never_fall_on_the_inputs_files(tmp_path, capsys):
    model = tiled_conv(tmp_path / "m.onnx", external=True)
    before = snapshot(tmp_path)
    for place in ("m.onnx", "m.onnx.weights"):
        code, _, err = run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS, "--force", "--html", tmp_path / place)
        assert code == ExitCode.BAD_INPUT
        assert "belongs to the input" in err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("location", "message"),
    [("absent.bin", "is missing in"), ("../outside.bin", "not inside the model's folder"), (None, "is too short")],
)
def test_external_data_that_is_missing_elsewhere_or_short(tmp_path, capsys, location, message):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1 << 20))
    path = tiled_conv(folder / "m.onnx", external=True)
    if location is None:
        (folder / "m.onnx.weights").write_bytes(b"short")
    else:
        model = onnx.load(path, load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.external_data)
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
        onnx.save(model, path)
    code, _, err = run(capsys, path, "-o", tmp_path / "o.onnx", *ALWAYS)
    assert code == ExitCode.BAD_INPUT
    assert message in err
    assert not (tmp_path / "o.onnx").exists()


def test_a_full_disk_leaves_nothing(model, tmp_path):
    """A limit on the size of written files stands in for the disk's."""
    script = (
        "import sys; from msconv_deploy.cli.main import main; "
        f"sys.exit(main(['optimize', {str(model)!r}, '-o', {str(tmp_path / 'o.onnx')!r}, '--when', 'always']))"
    )

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    before = snapshot(tmp_path)
    unwatched = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}  # it writes a file of its own
    done = subprocess.run(
        [sys.executable, "-B", "-c", script], capture_output=True, text=True, preexec_fn=limit, env=unwatched
    )
    assert done.returncode == ExitCode.BAD_INPUT, done.stderr
    assert "o.onnx: cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(tmp_path) == before


def test_a_report_that_cannot_be_written_leaves_no_model(model, tmp_path, capsys, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device", str(self))

    before = snapshot(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = run(capsys, model, "-o", tmp_path / "o.onnx", *ALWAYS)
    assert code == ExitCode.BAD_INPUT
    assert "No space left on device" in err
    assert snapshot(tmp_path) == before


def test_it_works_where_torch_cannot_be_imported(model, tmp_path):
    script = (
        "import sys; sys.modules['torch'] = None\nfrom msconv_deploy.cli.main import main\n"
        f"sys.exit(main(['optimize', {str(model)!r}, '-o', {str(tmp_path / 'o.onnx')!r}, '--when', 'always']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.onnx").is_file()


@pytest.mark.parametrize("name", ["stargan_g.ts13_dyn.onnx", "hf_patchtsmixer_inject.ts13_dyn.onnx"])
def test_real_models(name, tmp_path, capsys):
    if not (ZOO / name).is_file():
        pytest.skip(f"{name} is not in shared/zoo beside the checkout")
    code, _, _ = run(capsys, ZOO / name, "-o", tmp_path / "o.onnx", *ALWAYS, "--html", tmp_path / "o.html")
    assert code == 0
    report = report_of(tmp_path / "o.json")
    assert report.rewritten
    assert report.after.macs < report.before.macs
