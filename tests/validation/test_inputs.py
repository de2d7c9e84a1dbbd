"""Inputs: symbolic dimensions, sizes, random values, ranges and files."""

import io
import zipfile

import numpy as np
import pytest
from onnx import TensorProto

from msconv_deploy.errors import BadInputError
from msconv_deploy.ops.symbolic import extent, size_text
from msconv_deploy.validation.graph import TensorSpec, read_graph
from msconv_deploy.validation.input_shapes import parse_input_shape
from msconv_deploy.validation.inputs import (
    InputOptions,
    batch_symbols,
    complete_size,
    default_sizes,
    free_symbols,
    from_file,
    generate,
    parse_range,
    parse_ranges,
    parse_size,
)
from tests.validation.networks import single_op, two_convs

F32 = np.dtype(np.float32)
SPECS = [
    TensorSpec("nchw", F32, ("N", 3, "H", "W")),
    TensorSpec("nch", F32, ("N", 2, "H")),
    TensorSpec("ncw", F32, ("N", 2, "W")),
    TensorSpec("label", np.dtype(np.int64), ("N",)),
    TensorSpec("flag", np.dtype(bool), (1,)),
]


def test_symbols_are_shared_between_inputs():
    assert free_symbols(SPECS) == ["N", "H", "W"]
    assert batch_symbols(SPECS) == {"N"}
    arrays = generate(SPECS, {"N": 4, "H": 17, "W": 23}, InputOptions()).arrays
    assert {n: a.shape for n, a in arrays.items()} == {
        "nchw": (4, 3, 17, 23),
        "nch": (4, 2, 17),
        "ncw": (4, 2, 23),
        "label": (4,),
        "flag": (1,),
    }
    assert [arrays[s.name].dtype for s in SPECS] == [s.dtype for s in SPECS]
    assert set(np.unique(arrays["label"])) <= {0, 1}


def test_default_sizes_are_several_odd_and_tiny_ones_with_n_1_and_4():
    sizes = default_sizes(SPECS)
    assert {s["N"] for s in sizes} >= {1, 4}
    assert any(s["H"] == s["W"] == 1 for s in sizes)
    assert any(s["H"] % 2 and s["W"] % 2 and s["H"] != s["W"] for s in sizes)
    assert len({size_text(s) for s in sizes}) == len(sizes) >= 5
    assert default_sizes([TensorSpec("x", F32, (1, 3, 8, 8))]) == [{}]


def test_batches_of_several_names_are_once_not_equal():
    """A rewrite that takes one for the other agrees wherever they are."""
    specs = [TensorSpec("a", F32, ("N", 3, "H", "W")), TensorSpec("b", F32, ("M", 2)), TensorSpec("c", F32, ("K", "H"))]
    sizes = default_sizes(specs)
    assert [size for size in sizes if not size["N"] == size["M"] == size["K"]] == [
        {"N": 3, "H": 6, "W": 5, "M": 1, "K": 2}
    ]
    assert len(default_sizes(SPECS)) == len(sizes) - 1, "one name: nothing is added"


def test_each_of_several_extents_is_once_1_while_the_others_are_not():
    """What has an extent, and what is broadcast along it, agree wherever they are equal."""
    specs = [
        TensorSpec("a", F32, ("N", 3, "H", "W")),
        TensorSpec("b", F32, ("N", "H2")),
        TensorSpec("c", F32, (1, "W2")),
    ]
    names = ["H", "W", "H2", "W2"]
    sizes = default_sizes(specs)
    for name in names:
        assert [size for size in sizes if size[name] == 1 and all(size[other] > 1 for other in names if other != name)]
    many = [TensorSpec("a", F32, ("N", *(f"D{index}" for index in range(40))))]
    assert len(default_sizes(many)) < 12
    assert [size["L"] for size in default_sizes([TensorSpec("a", F32, ("N", 3, "L"))])].count(1) == 1


def test_values_are_seeded_and_every_set_has_its_own():
    size = {"N": 1, "H": 4, "W": 5}
    one, same = generate(SPECS, size, InputOptions(seed=3)), generate(SPECS, size, InputOptions(seed=3))
    other, next_set = generate(SPECS, size, InputOptions(seed=4)), generate(SPECS, size, InputOptions(seed=3), index=1)
    assert np.array_equal(one.arrays["nchw"], same.arrays["nchw"])
    assert not np.array_equal(one.arrays["nchw"], other.arrays["nchw"])
    assert not np.array_equal(one.arrays["nchw"], next_set.arrays["nchw"])


def test_ranges():
    options = InputOptions(ranges={"nchw": (2.0, 3.0), "label": (5, 9)})
    arrays = generate(SPECS, {"N": 64, "H": 4, "W": 4}, options).arrays
    assert arrays["nchw"].min() >= 2
    assert arrays["nchw"].max() < 3
    assert arrays["nchw"].dtype == np.float32
    assert set(np.unique(arrays["label"])) == {5, 6, 7, 8, 9}
    assert abs(arrays["nch"].mean()) < 0.5
    with pytest.raises(BadInputError, match="no such input"):
        generate(SPECS, {"N": 1, "H": 1, "W": 1}, InputOptions(ranges={"nchv": (0, 1)}))
    with pytest.raises(BadInputError, match="no integer"):
        generate(SPECS, {"N": 1, "H": 1, "W": 1}, InputOptions(ranges={"label": (0.2, 0.8)}))


@pytest.mark.parametrize(
    ("dim", "value"), [("H", 6), ("2*H", 12), ("H + W - 1", 13), ("H//4", 1), (7, 7), ("-H + 2*W", 10)]
)
def test_dimensions_may_be_expressions(dim, value):
    assert extent(dim, {"H": 6, "W": 8}) == value


def test_dimensions_that_are_no_extent():
    with pytest.raises(BadInputError, match="W"):
        extent("2*W", {"H": 6})
    with pytest.raises(BadInputError, match="not an extent"):
        extent("H/4", {"H": 6})
    with pytest.raises(BadInputError, match="not an extent"):
        extent("H - 9", {"H": 6})
    with pytest.raises(BadInputError, match="cannot be computed"):
        extent("4//H", {"H": 0})
    assert extent("x[2]", {"x[2]": 5}) == 5  # the name of a dimension that has none


def test_an_unnamed_dimension_is_called_by_its_place(tmp_path):
    path = single_op(tmp_path / "m.onnx", "Relu", {"x": (TensorProto.FLOAT, [None, 3, None])}, TensorProto.FLOAT)
    graph = read_graph(path)
    assert free_symbols(graph.inputs) == ["x[0]", "x[2]"]
    assert batch_symbols(graph.inputs) == {"x[0]"}
    assert complete_size(parse_size("x[2]=9"), graph.inputs)["x[2]"] == 9


def test_size_texts():
    assert parse_size("N=1, H=17,W=23") == {"N": 1, "H": 17, "W": 23}
    assert size_text({"N": 1, "H": 2}) == "N=1,H=2"
    assert size_text({}) == "static"
    for bad in ("", "N", "N=", "N=x", "N=0", "N=-1", "N=1,N=2", "N=1;H=2"):
        with pytest.raises(BadInputError, match="size"):
            parse_size(bad)
    with pytest.raises(BadInputError, match=r"no dynamic dimension Q; known are N, H, W"):
        complete_size({"Q": 1}, SPECS)
    assert set(complete_size({"H": 9}, SPECS)) == {"N", "H", "W"}


def test_range_texts():
    assert parse_range("a:b:0:2.5") == ("a:b", (0.0, 2.5))
    assert parse_range("iso:-1:1") == ("iso", (-1.0, 1.0))
    for bad in ("iso", "iso:1", ":0:1", "iso:2:1", "iso:a:b", "iso:0:inf", "iso:nan:1"):
        with pytest.raises(BadInputError, match="input range"):
            parse_range(bad)


def test_a_range_is_given_once_and_within_the_type():
    with pytest.raises(BadInputError, match="iso is given twice"):
        parse_ranges(["iso:0:1", "gain:0:1", "iso:0:2"])
    specs = [
        TensorSpec("u", np.dtype(np.uint8), (4,)),
        TensorSpec("i", np.dtype(np.int64), (4,)),
        TensorSpec("f", F32, (4,)),
    ]
    specs += [TensorSpec("d", np.dtype(np.float64), (4,)), TensorSpec("h", np.dtype(np.float16), (4,))]
    for name, low, high in (
        ("u", 0, 256),
        ("u", -1, 5),
        ("i", -1e30, 1),
        ("f", 0, 1e39),
        ("d", -1e308, 1e308),
        ("h", 0, 7e4),
    ):
        with pytest.raises(BadInputError, match=f"input range for {name}: .* leaves its type"):
            generate(specs, {}, InputOptions(ranges={name: (low, high)}))
    widest = {
        "u": (0, 255),
        "i": (-(2.0**62), 2.0**62),
        "f": (-3e38, 3e38),
        "d": (-8e307, 8e307),
        "h": (-65504.0, 65504.0),
    }
    arrays = generate(specs, {}, InputOptions(ranges=widest)).arrays
    assert all(np.isfinite(array.astype(np.float64)).all() for array in arrays.values())


def test_numbers_of_thousands_of_digits_are_refused():
    many = "9" * 5000
    with pytest.raises(BadInputError, match="write NAME=EXTENT"):
        parse_size(f"N={many}")
    with pytest.raises(BadInputError, match="more than 18 digits"):
        parse_input_shape(f"x:{many}x3")
    with pytest.raises(BadInputError, match="which no machine holds"):
        parse_input_shape("x:99999999999x3x99999999x8")


def test_a_dimension_that_cannot_be_computed_is_taken_from_the_file(tmp_path):
    specs = [TensorSpec("x", F32, ("H",)), TensorSpec("z", F32, ("2**H",)), TensorSpec("w", F32, ("H - 5",))]
    np.savez(tmp_path / "in.npz", x=np.ones(3, F32), z=np.ones(8, F32), w=np.ones(2, F32))
    made = from_file(specs, tmp_path / "in.npz", InputOptions())
    assert made.size == {"H": 3}
    assert {name: array.shape for name, array in made.arrays.items()} == {"x": (3,), "z": (8,), "w": (2,)}


def npz(path, name, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, content)


def test_broken_archives_are_bad_input(tmp_path):
    path = tmp_path / "in.npz"
    header = io.BytesIO()
    np.save(header, np.zeros((1, 3, 8, 8), np.float32))
    cut = header.getvalue().replace(b"(1, 3, 8, 8)", b"(9**9**9,   ")
    compressed = io.BytesIO()
    np.savez_compressed(compressed, nchw=np.random.default_rng(0).random((1, 3, 64, 64), np.float32))
    damaged = bytearray(compressed.getvalue())
    damaged[60:90] = bytes(30)
    contents = [
        lambda: npz(path, "nchw", "hello"),
        lambda: npz(path, "nchw.npy", cut),
        lambda: npz(path, "nchw.npy", b"x" * 100, zipfile.ZIP_LZMA),
        lambda: path.write_bytes(damaged),
    ]
    for write in contents:
        write()
        with pytest.raises(BadInputError, match=r"in\.npz: is not a NumPy \.npz file"):
            from_file(SPECS, path, InputOptions())


def test_inputs_from_a_file_set_the_size_of_the_others(tmp_path):
    path = tmp_path / "in.npz"
    image = np.random.default_rng(0).standard_normal((2, 3, 5, 7))
    np.savez(path, nchw=image)
    made = from_file(SPECS, path, InputOptions())
    assert made.size == {"N": 2, "H": 5, "W": 7}
    assert made.origin == "file"
    assert made.arrays["nchw"].dtype == np.float32
    assert np.array_equal(made.arrays["nchw"], image.astype(np.float32))
    assert made.arrays["nch"].shape == (2, 2, 5)


def test_bad_files(tmp_path):
    def refuse(match, **arrays):
        path = tmp_path / "in.npz"
        np.savez(path, **arrays)
        with pytest.raises(BadInputError, match=match):
            from_file(SPECS, path, InputOptions())

    image = np.zeros((1, 3, 5, 7), np.float32)
    refuse("holds imge; the model's inputs are nchw", imge=image)
    refuse("holds no arrays")
    refuse("wants \\[N, 3, H, W\\]", nchw=image[0])
    refuse("another input has H=5", nchw=image, nch=np.zeros((1, 2, 6)))
    refuse("wants \\[1, 3, 5, 7\\]", nchw=np.zeros((1, 4, 5, 7)))
    refuse("is complex128", nchw=image.astype(complex))
    refuse("is float64, but the model wants int64", nchw=image, label=np.zeros(1))
    refuse("not a NumPy .npz file", nchw=np.array([object()]))
    with pytest.raises(BadInputError, match="no such file"):
        from_file(SPECS, tmp_path / "nope.npz", InputOptions())
    np.save(tmp_path / "a.npy", image)
    with pytest.raises(BadInputError, match=r"npz"):
        from_file(SPECS, tmp_path / "a.npy", InputOptions())
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(BadInputError, match=r"npz"):
        from_file(SPECS, tmp_path / "t.npz", InputOptions())


def test_files_that_are_no_model(tmp_path):
    whole = two_convs(tmp_path / "m.onnx").read_bytes()
    cases = {
        "text.onnx": (b"hello, this is not a model", "not an ONNX model"),
        "cut.onnx": (whole[: len(whole) // 2], "not an ONNX"),
        "empty.onnx": (b"", "not an ONNX model"),
    }
    for name, (content, match) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInputError, match=match):
            read_graph(tmp_path / name)
    with pytest.raises(BadInputError, match="is a folder"):
        read_graph(tmp_path)
    with pytest.raises(BadInputError, match="no such file"):
        read_graph(tmp_path / "nope.onnx")
    two_convs(tmp_path / "e.onnx", external=True)
    (tmp_path / "e.onnx.data").unlink()
    with pytest.raises(BadInputError, match=r"external data .e.onnx.data. is missing"):
        read_graph(tmp_path / "e.onnx")
