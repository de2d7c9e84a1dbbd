"""msconv2d.yaml means what msconv_deploy.ops means, and plugins/README.md says what it says."""

import numpy as np
import onnx
import pytest

from msconv_deploy.ops.configuration import (
    OP_TYPE,
    PLUGIN_ATTRIBUTES,
    SOURCE_NAMES,
    Activation,
    MSConv2dConfig,
    PaddingMode,
    PaddingSemantics,
)
from msconv_deploy.ops.schema import schema
from msconv_deploy.ops.shapes import SOURCE_LAYOUT, weight_shape
from plugins import tables
from tests.plugins.plugin_object import ATTRIBUTES, DECLARATION

KINDS = {"padding_semantics": PaddingSemantics, "padding_mode": PaddingMode, "activation": Activation}
TYPES = {
    onnx.AttributeProto.INT: ("int32", False),
    onnx.AttributeProto.INTS: ("int32", True),
    onnx.AttributeProto.FLOATS: ("float32", True),
}


def test_name_version_and_namespace():
    assert DECLARATION["name"] == OP_TYPE
    assert {"plugin_version": DECLARATION["version"], "plugin_namespace": DECLARATION["namespace"]} == PLUGIN_ATTRIBUTES


def test_attributes_are_the_schemas_in_order():
    defaults = MSConv2dConfig((1, 0, 0, 0), (1, 1)).attributes()
    assert list(ATTRIBUTES) == list(defaults)
    known = schema().attributes
    assert set(known) - set(ATTRIBUTES) == set(PLUGIN_ATTRIBUTES)
    for name, attribute in ATTRIBUTES.items():
        value = defaults[name]
        assert attribute["length"] == (len(value) if isinstance(value, list) else 1)
        assert ("default" not in attribute) == known[name].required
        if "default" in attribute:
            assert attribute["default"] == (value if isinstance(value, list) else [value])
        assert (attribute["type"], attribute["length"] > 1) == TYPES[int(known[name].type.value)]


@pytest.mark.parametrize("name", KINDS)
def test_named_values(name):
    assert ATTRIBUTES[name]["values"] == [kind.name.lower() for kind in KINDS[name]]
    assert ATTRIBUTES[name]["range"] == [0, len(KINDS[name]) - 1]


@pytest.mark.parametrize("semantics", PaddingSemantics)
def test_inputs_and_their_shapes(semantics):
    config = MSConv2dConfig((1, 1, 1, 1), (3, 5), group=2, padding_semantics=semantics)
    assert [tensor["name"] for tensor in DECLARATION["inputs"]] == list(config.input_names)
    values = {"O": 8, "C1": 4, "C2": 6, "C3": 10, "C4": 12, "group": 2, "kh": 3, "kw": 5}
    for tensor in DECLARATION["inputs"]:
        text = tensor["shape"][semantics.name.lower()]
        name = tensor["name"].removeprefix("w_")
        if tensor["name"] in SOURCE_NAMES:
            assert text == SOURCE_LAYOUT[name]
            continue
        declared = tuple(int(eval(part, {}, values)) for part in text.strip("[]").split(","))
        channels = values.get(f"C{list(SOURCE_NAMES).index(name) + 1}", 0) if name in SOURCE_NAMES else 0
        assert declared == (weight_shape(config, name, channels, 8) if channels else (8,))


def test_when_an_input_is_present():
    for bits in range(1, 32):
        sources = [bits >> place & 1 for place in range(4)]
        if not any(sources):
            continue
        config = MSConv2dConfig(tuple(sources), (3, 3), has_bias=bits >> 4)
        state = {"sources": sources, "has_bias": bits >> 4}
        present = [t["name"] for t in DECLARATION["inputs"] if eval(t["present"], {}, state)]
        assert present == list(config.input_names)


def test_types_are_those_of_the_interfaces():
    majors = {major for entry in DECLARATION["interfaces"] for major in entry["tensorrt"]}
    assert {major for entry in DECLARATION["types"] for major in entry["tensorrt"]} == majors
    for entry in DECLARATION["types"]:
        assert entry["type"] == "bfloat16" or np.dtype(entry["type"]).kind == "f"


def test_the_readmes_tables_are_made_from_it():
    text = tables.README.read_text()
    assert tables.replace_tables(text, DECLARATION) == text, "run: python plugins/tables.py"
