"""The plugin object against TensorRT's real headers: shapes, types, formats, attributes, plans, clones, errors. No GPU.

Each test runs for every version whose headers are there, under the address and undefined-behaviour sanitizers, and the
last ones show that seeded faults are caught.
"""

import shutil

import numpy as np
import pytest

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.configuration import MSConv2dConfig, PaddingMode
from msconv_deploy.ops.shapes import output_shape, weight_shape
from tests.plugins.plugin_object import (
    ATTRIBUTES,
    DECLARATION,
    PLUGIN,
    VERSIONS,
    ask,
    driver,
    field,
    fields,
    major,
    run,
    shape,
)

every_version = pytest.mark.parametrize("version", VERSIONS)
REQUIRED = {name: attribute for name, attribute in ATTRIBUTES.items() if "default" not in attribute}
VALID = {"sources": [1, 0, 0, 1], "kernel_shape": [3, 3]}


@every_version
def test_what_needs_no_table_of_cases(version):
    done = run(driver(version), ["selftest"])
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert lines[-1] == "done"
    assert [line for line in lines if line.startswith("FAILED")] == []
    assert sum(line.startswith("ok ") for line in lines) == len(lines) - 1 == (23 if major(version) >= 10 else 15)


@every_version
def test_fields_are_those_declared(version):
    (answer,) = ask(driver(version), ["fields"])
    assert answer.split() == [f"{a['name']}:{a['type']}:{a['length']}" for a in DECLARATION["attributes"]]


def random_cases(count):
    """(configuration, source shapes, output channels) over all subsets of sources and both semantics, and the output."""
    random = np.random.default_rng(7)
    cases = []
    while len(cases) < count:
        group = int(random.integers(1, 4))
        try:
            config = MSConv2dConfig(
                sources=tuple(int(v) for v in random.integers(0, 2, 4)),
                kernel_shape=tuple(int(v) for v in random.integers(1, 6, 2)),
                has_bias=int(random.integers(0, 2)),
                strides=tuple(int(v) for v in random.integers(1, 4, 2)),
                dilations=tuple(int(v) for v in random.integers(1, 3, 2)),
                pads=tuple(int(v) for v in random.integers(0, 4, 4)),
                group=group,
                padding_semantics=int(random.integers(0, 2)),
            )
        except BadInputError:
            continue  # no source, or a tiled tensor without height or width
        n, h, w = int(random.integers(1, 5)), int(random.integers(1, 30)), int(random.integers(1, 30))
        channels = {name: int(random.integers(1, 4)) * group for name in config.source_names}
        out_channels = int(random.integers(1, 4)) * group
        extents = {"nchw": (h, w), "nch": (h,), "ncw": (w,), "nc": ()}
        batches = [int(random.choice([1, n])) for _ in config.source_names]
        shapes = {
            name: (batch, channels[name], *extents[name])
            for name, batch in zip(config.source_names, batches, strict=True)
        }
        try:
            expected = output_shape(config, shapes, out_channels)
        except BadInputError:
            continue  # the padded image is smaller than the kernel
        weights = [weight_shape(config, name, channels[name], out_channels) for name in config.source_names]
        inputs = [*shapes.values(), *weights, *([(out_channels,)] if config.has_bias else [])]
        cases.append((config, inputs, expected))
    return cases


@every_version
def test_output_shapes_are_the_operators(version):
    cases = random_cases(400)
    assert {c.sources for c, _, _ in cases} == {tuple(n >> b & 1 for b in range(4)) for n in range(1, 16)}
    questions = [
        f"shape {kind} {fields(config.attributes())} ; {' '.join(map(shape, inputs))}"
        for config, inputs, _ in cases
        for kind in ("static", "dynamic")
    ]
    answers = ask(driver(version), questions)
    expected = [shape(output) for _, _, output in cases for _ in range(2)]
    assert [(q, a) for q, a, e in zip(questions, answers, expected, strict=True) if a != e] == []


@every_version
def test_runs_of_the_operators_shapes_are_taken(version):
    cases = random_cases(100)
    questions = [
        f"run {fields(config.attributes())} ; float32 {' '.join(map(shape, inputs))} ; {shape(output)}"
        for config, inputs, output in cases
    ]
    answers = ask(driver(version), questions)
    assert [(q, a) for q, a in zip(questions, answers, strict=True) if a != "ok"] == []


def wrong_values(attribute):
    """Values of the right type and number that are out of the declared range."""
    low, high = attribute["range"]
    middle = attribute.get("default", [1] * attribute["length"])
    for value in ([] if low is None else [low - 1]) + ([] if high is None else [high + 1]):
        for place in range(attribute["length"]):
            yield [*middle[:place], value, *middle[place + 1 :]]


def wrong_fields():
    """(attribute, question) for everything that may be wrong with each declared attribute."""
    for name, attribute in ATTRIBUTES.items():
        right = attribute.get("default", VALID.get(name))
        others = {k: v for k, v in VALID.items() if k != name}
        for values in (right[:-1], [*right, right[0]]):
            yield name, f"create {fields(others)} {field(name, values)}"
        for kind in {"int32", "float32", "float64", "int8"} - {attribute["type"]}:
            yield name, f"create {fields(others)} {field(name, right, kind)}"
        for values in wrong_values(attribute):
            yield name, f"create {fields(others)} {field(name, values)}"
        yield name, f"create {fields(VALID)} {field(name, right)} {field(name, right)}"  # twice
        if name in REQUIRED:
            yield name, f"create {fields(others)}"
    yield "transposed", f"create {fields(VALID)} transposed:int32:1"


@every_version
def test_wrong_attributes_are_refused_by_name(version):
    wrong = list(wrong_fields())
    assert len(wrong) > 90
    answers = ask(driver(version), [question for _, question in wrong])
    unnamed = [
        (question, answer)
        for (name, question), answer in zip(wrong, answers, strict=True)
        if not (answer.startswith("error MSConv2d 'layer': ") and name in answer)
    ]
    assert unnamed == []


def test_the_reference_refuses_the_same_values():
    """One meaning: what is out of the declared range is out of range for msconv_deploy.ops as well."""
    for name, attribute in ATTRIBUTES.items():
        for values in wrong_values(attribute):
            with pytest.raises(BadInputError, match=name):
                MSConv2dConfig.from_attributes({**VALID, name: values if attribute["length"] > 1 else values[0]})


@every_version
def test_valid_attributes_are_taken(version):
    questions = [
        f"create {fields(VALID)}",
        *(f"create {fields(config.attributes())}" for config, _, _ in random_cases(50)),
    ]
    for name, attribute in ATTRIBUTES.items():
        low, high = attribute["range"]
        for value in {low, high} - {None}:
            if name == "sources":
                continue  # all 0 is refused; single values are among the random cases
            questions.append(
                f"create {fields({k: v for k, v in VALID.items() if k != name})} "
                f"{field(name, [value] * attribute['length'])}"
            )
    answers = ask(driver(version), questions)
    assert [(q, a) for q, a in zip(questions, answers, strict=True) if a != "ok"] == []


def types_of(version):
    return [t["type"] for t in DECLARATION["types"] if major(version) in t["tensorrt"]]


@every_version
def test_types_and_formats_are_those_declared(version):
    supported = types_of(version)
    known = ["float32", "float16", "int8", "int32", "bool", *(["bfloat16", "int64"] if major(version) >= 10 else [])]
    formats = ["linear", "chw2", "hwc8", "chw32", "hwc"]
    start = "formats " + fields({**VALID, "has_bias": 0}) + " ; "  # nchw, nc, their weights, the output
    questions, expected = [], []
    for kind in known:
        for layout in formats:
            questions.append(start + " ".join([f"{kind}:{layout}"] * 5))
            expected.append(kind in supported and layout in DECLARATION["formats"])
    answers = ask(driver(version), questions)
    assert [(q, a) for q, a, e in zip(questions, answers, expected, strict=True) if a != " ".join("01"[e] * 5)] == []
    mixed = [
        start + " ".join("float16:linear" if i == place else "float32:linear" for i in range(5))
        for place in range(1, 5)
    ]
    mixed += [
        start + " ".join("float32:hwc8" if i == place else "float32:linear" for i in range(5)) for place in range(1, 5)
    ]
    for place, answer in zip([1, 2, 3, 4] * 2, ask(driver(version), mixed), strict=True):
        assert answer.split() == ["0" if i == place else "1" for i in range(5)]


@every_version
def test_the_output_has_the_type_of_the_inputs(version):
    start = "type " + fields({**VALID, "has_bias": 0}) + " ; "
    supported = types_of(version)
    answers = ask(driver(version), [start + " ".join([kind] * 4) for kind in supported])
    assert answers == supported
    wrong = {
        "int32 int32 int32 int32": "nchw has type int32",
        "float32 float32 float32 float16": "the weight of nc has type float16",
    }
    for answer, expected in zip(ask(driver(version), [start + types for types in wrong]), wrong.values(), strict=True):
        assert answer.startswith("error")
        assert expected in answer
        assert "one type: float32, float16" in answer


IMAGE = {"sources": [1, 0, 0, 0], "kernel_shape": [3, 3]}
TWO = {"sources": [1, 1, 0, 0], "kernel_shape": [3, 3]}
BAD_RUNS = {
    "groups that do not divide the channels": ({**IMAGE, "group": 2}, "1x3x8x8 4x1x3x3 4", "1x4x6x6", "group"),
    "groups that do not divide the outputs": ({**IMAGE, "group": 2}, "1x4x8x8 5x2x3x3 5", "1x5x6x6", "group"),
    "a missing weight": (TWO, "1x3x8x8 1x2x8 4x3x3x3", "1x4x6x6", "the weight of nch is missing"),
    "a missing bias": (IMAGE, "1x3x8x8 4x3x3x3", "1x4x6x6", "the bias is missing"),
    "one input too many": ({**IMAGE, "has_bias": 0}, "1x3x8x8 4x3x3x3 4", "1x4x6x6", "too many inputs"),
    "a weight of the other semantics": (TWO, "1x3x8x8 1x2x8 4x3x3x3 4x2x3x3 4", "1x4x6x6", "the weight of nch"),
    "a weight of another kernel": (IMAGE, "1x3x8x8 4x3x5x3 4", "1x4x6x6", "kernel_shape"),
    "a bias of another length": (IMAGE, "1x3x8x8 4x3x3x3 5", "1x4x6x6", "the bias"),
    "a source of another rank": (TWO, "1x3x8x8 1x2x8x1 4x3x3x3 4x2x3 4", "1x4x6x6", "nch must have 3 dimensions"),
    "heights that differ": (TWO, "1x3x8x8 1x2x9 4x3x3x3 4x2x3 4", "1x4x6x6", "height 9"),
    "batches that differ": (TWO, "2x3x8x8 3x2x8 4x3x3x3 4x2x3 4", "3x4x6x6", "batch"),
    "an image smaller than the kernel": (IMAGE, "1x3x2x8 4x3x3x3 4", "1x4x1x6", "kernel_shape"),
    "reflection of more than there is": (
        {**IMAGE, "pads": [3, 0, 0, 0], "padding_mode": int(PaddingMode.REFLECT)},
        "1x3x3x8 4x3x3x3 4",
        "1x4x4x6",
        "pads",
    ),
    "an output of another shape": (IMAGE, "1x3x8x8 4x3x3x3 4", "1x4x8x8", "[1, 4, 6, 6]"),
}


@every_version
def test_problems_that_do_not_fit_are_errors_that_say_where(version):
    questions = [f"run {fields(a)} ; float32 {inputs} ; {output}" for a, inputs, output, _ in BAD_RUNS.values()]
    for (what, bad), answer in zip(BAD_RUNS.items(), ask(driver(version), questions), strict=True):
        assert answer.startswith("error MSConv2d 'layer': "), what
        assert bad[3] in answer, (what, answer)


@every_version
def test_shapes_that_do_not_fit_are_refused_while_building(version):
    questions = [
        f"shape dynamic {fields(TWO)} ; 1x3x8x8 1x2x8 4x3x3x3",
        f"shape dynamic {fields(TWO)} ; 1x3x8x8 1x2x8x1 4x3x3x3 4x2x3 4",
    ]
    missing, rank = ask(driver(version), questions)
    assert "the weight of nch is missing" in missing
    assert "nch must have 3 dimensions" in rank


# (file, what is there, the fault): each must make the self test or the shapes differ.
FAULTS = {
    "fields point to a copy that is gone": (
        "plugin_v3.cpp",
        "    fieldsOf(mAttributes, mFields);\n",
        "    Attributes const copy = mAttributes;\n    fieldsOf(copy, mFields);\n",
    ),
    "a flag is serialized as a byte": (
        "fields.cpp",
        '{"has_bias", kInts, 1,',
        '{"has_bias", PluginFieldType::kINT8, 1,',
    ),
    "one attribute is serialized in place of another": (
        "fields.cpp",
        "[](Attributes& a) -> void* { return a.strides; }",
        "[](Attributes& a) -> void* { return a.dilations; }",
    ),
    "a clone keeps the context of its original": ("plugin_v3.cpp", "    copy->mContext = nullptr;", "    //"),
    "the tactic is not obeyed": ("plugin_v3.cpp", "runnablePath(problem, mTactic, capability)", "Path::kChoose"),
    "strides are forgotten in the shape": (
        "shapes.cpp",
        "int64_t const stride = attributes.strides[axis];",
        "int64_t const stride = 1;",
    ),
    "the batch is the largest": ("shapes.cpp", "extents.batch = 0;", "//"),
    "a weight takes its source's place": ("run.cpp", "inputs[present + next]", "inputs[next]"),
    "the timing cache id leaves the last attribute out": (
        "fields.cpp",
        "    for (Field const& field : kFields)\n    {\n        append(",
        "    for (Field const& field : kFields)\n    {\n"
        "        if (&field == kFields + kFieldCount - 1) { break; }\n        append(",
    ),
    "unknown attributes are passed over": (
        "fields.cpp",
        "        if (index == kFieldCount)\n        {\n",
        "        if (index == kFieldCount)\n        {\n            continue;\n",
    ),
    "the workspace is that of the smallest shape": (
        "plugin_v3.cpp",
        "Inputs const largest = inputsOf(in, nbInputs, &DynamicPluginTensorDesc::max)",
        "Inputs const largest = inputsOf(in, nbInputs, &DynamicPluginTensorDesc::min)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_faults_are_caught(fault, tmp_path):
    version = VERSIONS[-1]
    driver(version)  # the right one compiles
    copy = tmp_path / "msconv"
    shutil.copytree(PLUGIN, copy)
    name, right, wrong = FAULTS[fault]
    path = copy / "tensorrt" / name
    text = path.read_text()
    assert text.count(right) == 1, f"{name}: the place of this fault has changed"
    path.write_text(text.replace(right, wrong))
    questions = [
        f"shape dynamic {fields(config.attributes())} ; {' '.join(map(shape, inputs))}"
        for config, inputs, _ in random_cases(20)
    ]
    questions += [question for _, question in wrong_fields()][-1:]
    right_answers, answers = (
        run(program, [*questions, "selftest"]) for program in (driver(version), driver(version, copy))
    )
    assert right_answers.returncode == 0
    assert answers.returncode != 0 or answers.stdout != right_answers.stdout
