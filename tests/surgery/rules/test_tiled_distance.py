"""`tiled-distance`: pairwise distances by tiling become a product of matrices, where that is allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msconv_deploy.cli.main import main
from msconv_deploy.errors import BadInputError, ExitCode
from msconv_deploy.optimizing import OptimizeOptions, optimize_file
from msconv_deploy.reporting import OptimizeReport
from msconv_deploy.surgery.distances import NOT_ALLOWED
from msconv_deploy.surgery.optimize import inspect_model, optimize_model
from msconv_deploy.surgery.rules import tiled_distance
from msconv_deploy.validation.cancellation import distance_bound
from tests.surgery.graphs import Net, assert_interface_kept, feeds, reasons, rewritten, session
from tests.surgery.rules.unfolding import DYNAMO, LEGACY, export, sizes_of

ID = tiled_distance.ID
ALLOW = (ID,)


def allowed(model, when="always"):
    """Optimize with the rule allowed; what must hold of any result holds."""
    before = model.SerializeToString(deterministic=True)
    result = optimize_model(model, Path(), when, allow=ALLOW)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result.model, full_check=True)
    assert_interface_kept(model, result.model)
    again = optimize_model(result.model, Path(), when, allow=ALLOW)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    return result


def exact(a, b, axis=-1, shift=0.0, root=False, keepdims=False):
    """In float64, from the definition."""
    squares = ((a.astype(np.float64) - b.astype(np.float64) + shift) ** 2).sum(axis, keepdims=keepdims)
    return np.sqrt(squares) if root else squares


def within(got, a, b, axis=-1, shift=0.0, root=False, keepdims=False):
    """Is every pair within the bound of the rule?"""
    bound = distance_bound(a, b, axis, shift, root)
    bound = bound if keepdims else np.squeeze(bound, axis)
    error = np.abs(got - exact(a, b, axis, shift, root, keepdims))
    return bool((error <= bound).all())


def operators(model):
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


# -- spellings ---------------------------------------------------------------------------------------------------------


def _spellings():
    torch = pytest.importorskip("torch")
    pairwise = torch.nn.functional.pairwise_distance
    return {
        "pow": (lambda a, b: (a[:, None] - b[None]).pow(2).sum(-1), {}),
        "operator": (lambda a, b: ((a.unsqueeze(1) - b.unsqueeze(0)) ** 2).sum(2, keepdim=True), {"keepdims": True}),
        "square": (lambda a, b: (a[:, None] - b[None]).square().sum(-1), {}),
        "itself": (lambda a, b: (lambda d: (d * d).sum(-1))(a[:, None] - b[None]), {}),
        "absolute": (lambda a, b: (a[:, None] - b[None]).abs().pow(2).sum(-1), {}),
        "norm": (lambda a, b: torch.norm(a[:, None] - b[None], dim=-1), {"root": True}),
        "vector norm": (lambda a, b: torch.linalg.vector_norm(a[:, None] - b[None], dim=-1), {"root": True}),
        "expand": (
            lambda a, b: (a[:, None].expand(-1, b.size(0), -1) - b[None].expand(a.size(0), -1, -1)).pow(2).sum(-1),
            {},
        ),
        "repeat": (
            lambda a, b: (a[:, None].repeat(1, b.size(0), 1) - b[None].repeat(a.size(0), 1, 1)).pow(2).sum(-1),
            {},
        ),
        "second first": (lambda a, b: (a[None] - b[:, None]).pow(2).sum(-1).transpose(0, 1), {}),
        "pairwise distance": (lambda a, b: pairwise(a[:, None], b[None]), {"root": True, "shift": 1e-6}),
    }


NAMES = ["pow", "operator", "square", "itself", "absolute", "norm", "vector norm", "expand", "repeat", "second first",
         "pairwise distance"]  # fmt: skip
CASES = [(name, LEGACY, True) for name in NAMES]
CASES += [(name, DYNAMO, True) for name in ("pow", "norm", "expand", "repeat", "pairwise distance")]
CASES += [("pow", LEGACY, False), ("repeat", LEGACY, False), ("operator", DYNAMO, False)]


@pytest.mark.parametrize(("name", "exporter", "dynamic"), CASES)
def test_what_exporters_write(name, exporter, dynamic):
    function, how = _spellings()[name]
    codes = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    shapes = [(7, 6), (1, 6), (3, 6)] if dynamic else [(7, 6)]
    model = export(function, shapes[0], exporter, dynamic, codes)
    result = allowed(model)
    assert rewritten(result, ID) == 1, reasons(result)
    assert "MatMul" in operators(result.model)
    gone = (
        {"Sub", "Tile"} if name == "repeat" else {"Sub", "Tile", "Expand"}
    )  # it adds an axis by an Expand that copies nothing
    assert not gone & set(operators(result.model))
    run = session(result.model)
    for number, shape in enumerate(shapes):
        x = np.random.default_rng(number).standard_normal(shape).astype(np.float32)
        (got,) = run.run(None, {"x": x})
        assert within(got, x[:, None], codes[None], **{"shift": 0.0, **how}), shape
    assert sizes_of(model, shapes)


# -- geometry ----------------------------------------------------------------------------------------------------------


def net_of(a, b, axis=-1, op="ReduceSum", keepdims=0, opset=17, dtype=np.float32, tail=None):
    """The distance of inputs ``a`` and ``b`` with these extents; they broadcast."""
    net = Net(opset, dtype)
    difference = net.node("Sub", net.input(*a, name="a"), net.input(*b, name="b"), name="difference")
    if op == "ReduceSum":
        difference = net.node("Mul", difference, difference)
    rank = max(len(a), len(b))
    if opset >= (13 if op == "ReduceSum" else 18):
        y = net.node(op, difference, net.ints(axis), keepdims=keepdims, name="distance")
    else:
        y = net.node(op, difference, axes=[axis % rank if opset < 11 else axis], keepdims=keepdims, name="distance")
    net.output(tail(net, y) if tail else y, rank=rank - 1 + keepdims)
    return net


@st.composite
def pairs(draw):
    """Extents of two operands and the summed axis: at least one axis of each that the other one lacks."""
    kinds = draw(
        st.permutations(["a", "b", "sum", *draw(st.lists(st.sampled_from(["a", "b", "both", "none"]), max_size=2))])
    )
    extents = [draw(st.integers(2, 4)) for _ in kinds]
    a = [1 if kind in ("b", "none") else n for kind, n in zip(kinds, extents, strict=True)]
    b = [1 if kind in ("a", "none") else n for kind, n in zip(kinds, extents, strict=True)]
    while len(b) > 1 and b[0] == 1 and draw(st.booleans()):
        b = b[1:]
    return a, b, kinds.index("sum") - len(kinds)


@given(pair=pairs(), keepdims=st.integers(0, 1), op=st.sampled_from(sorted(tiled_distance._REDUCTIONS)))
@settings(max_examples=40, deadline=None)
def test_any_axes(pair, keepdims, op):
    a, b, axis = pair
    model = net_of(a, b, axis, op, keepdims).model()
    result = allowed(model)
    assert rewritten(result, ID) == 1, reasons(result)
    given_ = feeds(model, {})
    (got,) = session(result.model).run(None, given_)
    assert within(got, given_["a"], given_["b"], axis, root=op == "ReduceL2", keepdims=bool(keepdims))


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
def test_opsets_and_dynamic_extents(opset):
    model = net_of(("N", "P", 1, 8), ("N", 1, "Q", 8), opset=opset).model()
    result = allowed(model)
    assert rewritten(result, ID) == 1, reasons(result)
    for seed, sizes in enumerate(({"N": 2, "P": 3, "Q": 4}, {"N": 1, "P": 1, "Q": 1}, {"N": 3, "P": 5, "Q": 1})):
        given_ = feeds(model, sizes, seed)
        (got,) = session(result.model).run(None, given_)
        assert within(got, given_["a"], given_["b"])


def test_double_precision():
    model = net_of((6, 1, 3), (4, 3), dtype=np.float64).model()
    given_ = feeds(model, {})
    (got,) = session(allowed(model).model).run(None, given_)
    assert np.abs(got - exact(given_["a"], given_["b"])).max() < 1e-13


# -- the bound ---------------------------------------------------------------------------------------------------------


@given(
    terms=st.sampled_from([1, 2, 16, 300]), offset=st.sampled_from([0.0, 1.0, 100.0, 3000.0]),
    apart=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]), root=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_near_points_far_from_the_origin_stay_within_the_bound(terms, offset, apart, root, seed):
    rng = np.random.default_rng(seed)
    b = (offset + rng.standard_normal((9, terms))).astype(np.float32)
    a = (b[:5] + apart * rng.standard_normal((5, terms)))[:, None].astype(np.float32)
    model = net_of((5, 1, terms), (9, terms), op="ReduceL2" if root else "ReduceSum").model()
    (got,) = session(_rewritten_model(terms, root, model)).run(None, {"a": a, "b": b})
    assert (got >= 0).all()
    assert within(got, a, b, root=root)


_MODELS: dict = {}


def _rewritten_model(terms, root, model):
    if (terms, root) not in _MODELS:
        _MODELS[terms, root] = optimize_model(model, Path(), "always", allow=ALLOW).model
    return _MODELS[terms, root]


def test_it_cancels_which_is_why_it_has_to_be_allowed():
    """Points 1e-3 apart at an offset of 1000: the original keeps the distance, the product does not; a root shows it more."""
    rng = np.random.default_rng(0)
    b = (1000 + rng.standard_normal((50, 8))).astype(np.float32)
    a = (b + 1e-3 * rng.standard_normal(b.shape).astype(np.float32))[:, None]
    model = net_of((50, 1, 8), (50, 8)).model()
    wanted = np.diagonal(exact(a, b))
    (before,), (after,) = (session(m).run(None, {"a": a, "b": b}) for m in (model, allowed(model).model))
    assert np.abs(np.diagonal(before) - wanted).max() < 1e-5 * wanted.max()
    assert np.abs(np.diagonal(after) - wanted).max() > 0.5 * wanted.max()
    assert np.abs(np.sqrt(np.diagonal(after)) - np.sqrt(wanted)).max() > 0.1
    assert within(after, a, b)


def test_the_bound_is_not_idle():
    """A product with the second norm forgotten, or in half the digits, leaves it."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((6, 1, 8)).astype(np.float32), rng.standard_normal((4, 8)).astype(np.float32)
    wanted = exact(a, b)
    assert within(wanted, a, b)
    assert not within(wanted - np.square(b).sum(-1), a, b)
    assert not within(wanted.astype(np.float16), a, b)


# -- what is left ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["faster", "always"])
def test_it_is_never_applied_by_itself(when):
    model = net_of((300, 1, 32), (200, 32)).model()
    result = optimize_model(model, Path(), when)
    assert not rewritten(result, ID)
    assert NOT_ALLOWED in reasons(result)
    assert NOT_ALLOWED in reasons(inspect_model(model, Path()))
    assert rewritten(optimize_model(model, Path(), when, allow=ALLOW), ID) == 1
    (site,) = inspect_model(model, Path(), allow=ALLOW).sites
    assert (site.rule, site.decision) == (ID, "left")


def test_an_unknown_rule_is_refused():
    with pytest.raises(BadInputError, match="no rule 'tiled-distances' needs to be allowed"):
        optimize_model(net_of((3, 1, 2), (2,)).model(), Path(), allow=["tiled-distances"])


def test_the_default_leaves_what_is_not_faster():
    result = allowed(net_of((2, 1, 2), (2, 2)).model(), "faster")
    assert not rewritten(result, ID)
    assert "less than x1.05" in reasons(result)


@pytest.mark.parametrize(
    ("a", "b", "dtype", "reason"),
    [
        ((5, 8), (5, 8), np.float32, None),  # not in pairs
        ((5, 8), (8,), np.float32, None),  # from one point
        ((5, 1, 8), (7, 1), np.float32, "one operand is copied along them"),
        ((5, 1, "D"), (7, "D"), np.float32, "the number of terms is not known"),
        (("N", 5, 1, 8), ("M", 1, 7, 8), np.float32, "is not known to be that of its operands"),
        ((5, 1, 8), (7, 8), np.float16, "float16 has too few digits"),
        ((5, 1, 8), (7, 8), np.int32, "int32 has too few digits"),
    ],
)
def test_what_is_left_and_why(a, b, dtype, reason):
    result = optimize_model(net_of(a, b, dtype=dtype).model(), Path(), "always", allow=ALLOW)
    assert not rewritten(result, ID)
    assert (reason in reasons(result)) if reason else not result.near_misses


@pytest.mark.parametrize("power", [3, "computed"])
def test_another_power(power):
    net = Net()
    exponent = net.input(1) if power == "computed" else net.scalar(power)
    difference = net.node("Sub", net.input(5, 1, 8), net.input(7, 8))
    net.output(net.node("ReduceSum", net.node("Pow", difference, exponent), net.ints(-1), keepdims=0), rank=2)
    assert not optimize_model(net.model(), Path(), "always", allow=ALLOW).sites


def test_several_sums():
    net = Net()
    square = net.node("Pow", net.node("Sub", net.input(5, 1, 8), net.input(7, 8)), net.scalar(2))
    net.output(net.node("ReduceSum", square, net.ints(0, 2), keepdims=0), rank=1)
    assert not optimize_model(net.model(), Path(), "always", allow=ALLOW).sites


@pytest.mark.parametrize("what", ["output", "reader"])
def test_a_difference_that_is_needed_elsewhere_stays(what):
    net = Net()
    difference = net.node("Sub", net.input(40, 1, 8, name="a"), net.input(30, 8, name="b"))
    square = net.node("Pow", difference, net.scalar(2))
    net.output(difference if what == "output" else net.node("Relu", difference), rank=3)
    net.output(net.node("ReduceSum", square, net.ints(-1), keepdims=0), rank=2)
    model = net.model()
    assert rewritten(allowed(model), ID) == 1
    assert "Sub" in operators(allowed(model).model)


def test_names_that_exist_already():
    net = net_of((5, 1, 8), (7, 8))
    net.output(net.node("Relu", net.input(1), outputs="distance/msconv_matmul"), rank=1)
    assert rewritten(allowed(net.model()), ID) == 1


def test_quantized_points():
    """Q/DQ in front of it: what they give is read as it is."""
    net = Net()
    scale, zero = net.scalar(0.05), net.constant(np.int8(0))
    points = net.node(
        "DequantizeLinear", net.node("QuantizeLinear", net.input(5, 1, 8, name="a"), scale, zero), scale, zero
    )
    square = net.node("Pow", net.node("Sub", points, net.random(7, 8)), net.scalar(2))
    net.output(net.node("ReduceSum", square, net.ints(-1), keepdims=0), rank=2)
    model = net.model()
    result = allowed(model)
    assert rewritten(result, ID) == 1, reasons(result)
    (before,), (after,) = (session(m).run(None, feeds(model, {})) for m in (model, result.model))
    assert np.abs(before - after).max() < 1e-4


# -- verification ------------------------------------------------------------------------------------------------------


def _kernel(net, y):
    """exp(-d / 2), and a smoothed root."""
    net.output(net.node("Sqrt", net.node("Add", y, net.scalar(1e-4))), rank=2)
    return net.node("Exp", net.node("Mul", y, net.scalar(-0.5)))


def _optimize(tmp_path, model, **options):
    onnx.save(model, tmp_path / "m.onnx")
    return optimize_file(
        tmp_path / "m.onnx", tmp_path / "out.onnx", OptimizeOptions(when="always", allow=ALLOW, **options)
    )


@pytest.mark.parametrize("low", [0, 30])
def test_the_tolerance_is_the_bound(tmp_path, low):
    """Near each other and far from the origin: more than rounding, less than the bound, at the site and behind it."""
    model = net_of(("N", 1, 8), ("M", 8), tail=_kernel).model()
    report = _optimize(tmp_path, model, input_ranges={"a": (low, low + 1), "b": (low, low + 1)})
    assert report.verdict == "passed", report.reason
    assert (report.allowed, report.rules) == ([ID], [ID])
    rows = report.verification.sites
    assert rows
    if low:
        assert all(row.tolerance > 10 * row.policy_tolerance for row in rows)
        assert any(row.difference > row.policy_tolerance for row in rows)


def test_where_nothing_is_left_no_verdict_is_given(tmp_path):
    model = net_of((20, 1, 8), (30, 8)).model()
    report = _optimize(tmp_path, model, input_ranges={"a": (3000, 3001), "b": (3000, 3001)})
    assert report.verdict == "unverified"
    assert not report.written


def test_what_leaves_the_bound_differs(tmp_path, monkeypatch):
    """The same rewrite with a norm that is 1% off."""
    norms = tiled_distance._norms

    def wrong(builder, emitter, matrix):
        return builder.add("Mul", norms(builder, emitter, matrix), builder.constant(np.float32(1.01)))

    monkeypatch.setattr(tiled_distance, "_norms", wrong)
    report = _optimize(tmp_path, net_of(("N", 1, 8), ("M", 8), tail=_kernel).model())
    assert report.verdict == "differ"
    assert {row.verdict for row in report.verification.sites} == {"differ"}


def test_the_index_of_the_nearest_stays_equal(tmp_path):
    """Integers have no tolerance."""
    net = net_of((40, 1, 8), (30, 8))
    net.output(net.node("ArgMin", net.outputs[0], axis=1, keepdims=0), rank=1)
    model = net.model()
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    report = _optimize(tmp_path, model)
    assert report.verdict == "passed", report.reason
    assert any(row.exact for row in report.verification.outputs)


# -- on the command line -----------------------------------------------------------------------------------------------


def test_it_is_allowed_by_an_option(tmp_path, capsys):
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(net_of((40, 1, 8), (30, 8)).model(), path)
    assert main(["inspect", str(path)]) == 0
    assert "--allow tiled-distance" in " ".join(capsys.readouterr().out.split())
    assert main(["optimize", str(path), "-o", str(out), "--when", "always"]) == 0
    assert out.read_bytes() == path.read_bytes()
    arguments = ["optimize", str(path), "-o", str(out), "--when", "always", "--force", "--allow", ID]
    assert main(arguments) == 0
    assert "MatMul" in operators(onnx.load(out))
    sidecar = OptimizeReport.model_validate_json(out.with_suffix(".json").read_text())
    assert (sidecar.allowed, sidecar.rules, sidecar.verdict) == ([ID], [ID], "passed")
    capsys.readouterr()
    assert main(["inspect", str(path), "--allow", ID]) == 0
    assert "1 sites, 0 near-misses" in capsys.readouterr().out


def test_an_unknown_rule_is_bad_usage(tmp_path, capsys):
    onnx.save(net_of((4, 1, 8), (3, 8)).model(), tmp_path / "m.onnx")
    code = main(["optimize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out.onnx"), "--allow", "everything"])
    assert code == ExitCode.BAD_INPUT
    assert "tiled-distance" in capsys.readouterr().err
