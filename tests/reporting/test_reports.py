"""Reports: one schema, strict fields, versions."""

import json
import platform

import pytest
from pydantic import ValidationError

from msconv_deploy import __version__
from msconv_deploy.errors import BadInputError, OutputsDifferError, UnverifiedError
from msconv_deploy.reporting import SCHEMA_VERSION, Comparison, Divergence, DoctorReport, Finding, ValidationReport
from msconv_deploy.reporting.validation import largest_differences
from msconv_deploy.reporting.versions import distribution_version, installed_versions


def row(verdict: str, difference: float | None, **more) -> Comparison:
    values = {"runtime": "ort", "case": "case0", "size": {"N": 1}, "output": "y", "dtype": "float32", "tolerance": 1e-5}
    return Comparison(**values, policy_tolerance=1e-5, verdict=verdict, difference=difference, **more)


def report(*comparisons: Comparison, verdict: str = "passed") -> ValidationReport:
    return ValidationReport(
        model="m.onnx",
        reference="r.onnx",
        reference_runtime="reference",
        runtimes=["ort"],
        verdict=verdict,
        reason="why",
        comparisons=list(comparisons),
        seed=4,
    )


def test_every_report_says_with_what_it_was_made():
    content = json.loads(report(row("passed", 1e-7)).to_json())
    assert content["schema_version"] == SCHEMA_VERSION
    assert content["verb"] == "validate"
    assert content["tool_version"] == __version__
    assert content["seed"] == 4
    assert content["versions"]["python"] == platform.python_version()
    assert content["versions"]["onnxruntime"]
    assert content["created"].endswith("+00:00")
    assert ValidationReport.model_validate_json(report(row("passed", 1e-7)).to_json()).comparisons[0].difference == 1e-7


def test_names_that_are_no_utf8_are_written_with_replacement_characters():
    written = report(row("passed", 1e-7)).model_copy(update={"model": "n\udcff.onnx", "notes": ["of \udcfe"]}).to_json()
    found = ValidationReport.model_validate_json(written.encode("utf-8"))
    assert (found.model, found.notes) == ("n?.onnx", ["of ?"])
    assert found.comparisons[0].difference == 1e-7


def test_fields_are_strict():
    with pytest.raises(ValidationError):
        report().model_validate({**json.loads(report().to_json()), "verdikt": "passed"})
    with pytest.raises(ValidationError):
        row("ok", 0.0)


def test_writing(tmp_path):
    path = tmp_path / "r.json"
    report().write(path)
    with pytest.raises(BadInputError, match="--force"):
        report().write(path)
    report(verdict="differ").write(path, force=True)
    assert json.loads(path.read_text())["verdict"] == "differ"


def test_largest_difference_and_needed_tolerance():
    rows = [row("passed", 1e-7), row("differ", 2e-3), row("passed", None, exact=True)]
    assert largest_differences(rows, ["ort", "torch"]) == {"ort": 2e-3, "torch": None}
    assert report(*rows).needed_tolerance == 2e-3
    infinite = [*rows, row("differ", None, reason="NaN")]
    assert largest_differences(infinite, ["ort"]) == {"ort": None}
    assert report(*infinite).needed_tolerance is None
    assert report(*rows, row("differ", None, exact=True)).needed_tolerance is None
    # A size that could not be judged has no difference, but hides none of the others.
    assert largest_differences([*rows, row("unverified", None)], ["ort"]) == {"ort": 2e-3}


def test_verdicts_become_errors():
    report().raise_for_verdict()
    with pytest.raises(OutputsDifferError, match=r"m.onnx: why"):
        report(verdict="differ").raise_for_verdict()
    with pytest.raises(UnverifiedError, match="not verified: why"):
        report(verdict="unverified").raise_for_verdict()


def test_text_of_a_divergence():
    found = Divergence(
        found=True,
        tensor="t",
        node="n",
        op_type="Conv",
        module="blocks.0",
        difference=0.5,
        tolerance=1e-5,
        last_agreeing="s",
    )
    text = "output of module blocks.0, t (Conv n): difference 5.00e-01, tolerance 1.00e-05; s before it agrees"
    assert found.text == f"first diverging tensor: {text}"
    nan = found.model_copy(update={"difference": None, "reason": "3 of 4 values are NaN", "last_agreeing": None})
    assert "3 of 4 values are NaN" in nan.text
    assert Divergence(found=False, reason="because").text == "first diverging tensor: not found: because"


def test_versions():
    assert distribution_version("no-such-distribution-xyz") is None
    assert distribution_version("no-such-distribution-xyz", "numpy") == installed_versions()["numpy"]


def test_doctor_needs_what_is_required():
    def finding(status, required):
        return Finding(group="g", name="n", status=status, required=required)

    assert DoctorReport(findings=[finding("found", True), finding("missing", False)]).usable
    assert not DoctorReport(findings=[finding("missing", True)]).usable
    assert not DoctorReport(findings=[finding("problem", True)]).usable
