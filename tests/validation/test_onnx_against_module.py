"""Validation of an exported file against its PyTorch module, for both exporters."""

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the reference is a PyTorch module: pip install 'msconv-deploy[torch]'")

from torch import nn  # noqa: E402

from msconv_deploy.errors import BadInputError, UnverifiedError  # noqa: E402
from msconv_deploy.validation import InputOptions, ValidationOptions, validate_onnx_against_module  # noqa: E402
from msconv_deploy.validation.divergence import node_scope  # noqa: E402


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return x + self.act(self.norm(self.conv(x)))


class Network(nn.Module):
    """Image and scalars; nested containers, a BatchNorm right behind a convolution, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.film = nn.Linear(4, 8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.tail = nn.Conv2d(8, 2, 1)

    def forward(self, image, scalars):
        x = self.head(image) + self.film(scalars)[:, :, None, None]
        x = torch.sigmoid(self.blocks(x))
        return {"y": self.tail(x), "mean": x.mean((2, 3))}


def export(module: nn.Module, path: Path, exporter: str, example, inputs, outputs, dims) -> Path:
    """``dims``: per input, axis -> name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        common = {"input_names": inputs, "output_names": outputs, "opset_version": 18}
        if exporter == "legacy":
            axes = dict(zip(inputs, dims, strict=True))
            torch.onnx.export(module, example, str(path), dynamo=False, dynamic_axes=axes, **common)
        else:
            shapes = tuple({axis: torch.export.Dim(name) for axis, name in axes.items()} for axes in dims)
            torch.onnx.export(module, example, str(path), dynamo=True, dynamic_shapes=shapes, verbose=False, **common)
    return path


def make_network(dtype=torch.float32) -> Network:
    torch.manual_seed(3)
    network = Network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that a folded BatchNorm would show
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval().to(dtype)


@pytest.fixture(scope="module", params=["legacy", "dynamo"])
def exported(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "network.onnx"
    example = (torch.randn(2, 3, 12, 14), torch.randn(2, 4))
    dims = ({0: "N", 2: "H", 3: "W"}, {0: "N"})
    return export(make_network(), path, request.param, example, ["image", "scalars"], ["y", "mean"], dims)


def test_the_export_agrees_at_every_size(exported):
    report = validate_onnx_against_module(exported, make_network())
    assert report.verdict == "passed", report.reason
    assert report.runtimes == ["torch", "ort"]
    assert report.reference_runtime == "torch float64"
    assert {(c.size["N"], c.size["H"], c.size["W"]) for c in report.comparisons} >= {(4, 17, 23), (1, 1, 1), (4, 2, 3)}
    assert {c.output for c in report.comparisons} == {"y", "mean"}
    assert 0 < report.largest_difference["ort"] < 1e-5
    assert 0 < report.largest_difference["torch"] < 1e-5
    assert report.insensitive_inputs == []
    image, vector = report.comparisons[0], report.comparisons[1]
    assert image.border is not None
    assert image.interior is not None
    assert vector.border is None


@pytest.mark.parametrize(
    ("parameter", "module"),
    [
        ("head.weight", "head"),
        ("film.bias", "film"),
        ("blocks.0.conv.weight", "blocks.0.conv"),
        ("blocks.1.norm.weight", "blocks.1.norm"),
        ("tail.bias", "tail"),
    ],
)
def test_one_wrong_weight_is_caught_and_its_module_named(exported, parameter, module):
    network = make_network()
    with torch.no_grad():
        network.get_parameter(parameter).view(-1)[1] += 0.25
    report = validate_onnx_against_module(exported, network, ValidationOptions(runtimes=["ort"]))
    assert report.verdict == "differ"
    # Both exporters fold a BatchNorm into the convolution before it; whose name the tensor keeps is theirs to say.
    folded = module.startswith("blocks")
    block = module.rpartition(".")[0]
    accepted = {f"{block}.conv", f"{block}.norm"} if folded else {module}
    assert report.divergence.found, report.divergence
    assert report.divergence.module in accepted, report.divergence
    assert report.divergence.difference > report.divergence.tolerance
    assert report.divergence.module in report.divergence.text


def test_a_folded_batchnorm_is_not_mistaken_for_a_divergence(exported):
    """Behind the convolution the legacy exporter's tensor is that of the BatchNorm; the fault is further on."""
    network = make_network()
    with torch.no_grad():
        network.tail.weight[0, 3] += 0.25
    report = validate_onnx_against_module(exported, network)
    assert report.divergence.module == "tail"
    assert report.divergence.last_agreeing_module in ("blocks", "blocks.1")


def test_names_of_inputs_and_outputs_must_be_the_files(exported):
    with pytest.raises(BadInputError, match="in only one of the two: imag, image"):
        validate_onnx_against_module(exported, make_network(), input_names=["imag", "scalars"])
    with pytest.raises(BadInputError, match="output names do not match"):
        validate_onnx_against_module(exported, make_network(), output_names=["y"])


def test_a_module_that_fits_no_size_is_unverified(exported):
    with pytest.raises(UnverifiedError, match=r"none of the inputs(.|\n)*N=1,H=32,W=48"):
        validate_onnx_against_module(exported, nn.Linear(5, 5))


def test_nothing_about_the_module_changes(exported):
    network = make_network().train()
    network.blocks[0].eval()
    before = copy.deepcopy(network.state_dict())
    report = validate_onnx_against_module(exported, network)
    assert report.verdict == "passed"  # evaluated in eval mode: a BatchNorm in training mode would differ
    assert network.training
    assert not network.blocks[0].training
    assert network.blocks[1].training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(m._forward_hooks for m in network.modules())


def test_float16_against_float64_weights(tmp_path):
    network = make_network(torch.float16)
    example = (torch.randn(2, 3, 12, 14).half(), torch.randn(2, 4).half())
    dims = ({0: "N", 2: "H", 3: "W"}, {0: "N"})
    path = export(network, tmp_path / "half.onnx", "legacy", example, ["image", "scalars"], ["y", "mean"], dims)
    report = validate_onnx_against_module(path, network)
    assert report.verdict == "passed"
    assert {c.dtype for c in report.comparisons} == {"float16"}
    assert 1e-5 < report.largest_difference["ort"] < 1e-2
    with torch.no_grad():
        network.blocks[0].conv.weight[0, 0] += 0.5
    report = validate_onnx_against_module(path, network)
    assert report.verdict == "differ"
    assert report.divergence.module == "blocks.0.conv"


class Scaled(nn.Module):
    """x - mean, over its spread: at 1x1 only rounding is left, and it is blown up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        x = x * 3 - x - x - x.mean((2, 3), keepdim=True)  # three roundings of what is zero at 1x1
        return x / (x.abs().amax((2, 3), keepdim=True) + 1e-30)


def test_a_size_that_is_all_noise_is_unverified_and_the_others_decide(tmp_path):
    torch.manual_seed(0)
    network = Scaled().eval()
    axes = ({0: "N", 2: "H", 3: "W"},)
    path = export(network, tmp_path / "m.onnx", "legacy", (torch.randn(2, 3, 6, 7),), ["x"], ["y"], axes)
    sizes = [{"N": 1, "H": 9, "W": 8}, {"N": 4, "H": 1, "W": 1}]
    report = validate_onnx_against_module(path, network, ValidationOptions(inputs=InputOptions(sizes=sizes)))
    verdicts = {(c.runtime, c.size["H"]): c.verdict for c in report.comparisons}
    assert verdicts["ort", 9] == "passed"
    assert verdicts["ort", 1] != "passed" or report.comparisons[-1].difference == 0
    assert verdicts["torch", 1] == "unverified"
    assert report.verdict == "passed"
    only_noise = ValidationOptions(inputs=InputOptions(sizes=sizes[1:]))
    assert validate_onnx_against_module(path, network, only_noise).verdict == "unverified"


class Overflow(nn.Module):
    def forward(self, x):
        return x * 60000 * 60000


def test_overflow_of_float16_differs(tmp_path):
    path = export(Overflow(), tmp_path / "m.onnx", "legacy", (torch.randn(2, 3).half(),), ["x"], ["y"], ({0: "N"},))
    report = validate_onnx_against_module(path, Overflow().half())
    assert report.verdict == "differ"
    assert "infinite" in report.reason


class NeedsFloat32(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        assert self.linear.weight.dtype == torch.float32, "this network knows float32 only"
        return self.linear(x)


def test_a_module_without_float64_is_its_own_reference(tmp_path):
    torch.manual_seed(0)
    network = NeedsFloat32().eval()
    path = export(network, tmp_path / "m.onnx", "legacy", (torch.randn(2, 4),), ["x"], ["y"], ({0: "N"},))
    report = validate_onnx_against_module(path, network)
    assert report.verdict == "passed"
    assert report.reference_runtime == "torch float32"
    assert {c.runtime for c in report.comparisons} == {"ort"}  # comparing it with itself would prove nothing
    assert any("does not run in float64" in note for note in report.notes)


def test_the_module_alone_says_nothing_about_the_file(tmp_path):
    network = nn.Linear(4, 4).eval()
    path = export(network, tmp_path / "m.onnx", "legacy", (torch.randn(2, 4),), ["x"], ["y"], ({0: "N"},))
    with pytest.raises(BadInputError, match="of the runtimes torch none runs the ONNX file.*add ort"):
        validate_onnx_against_module(path, network, ValidationOptions(runtimes=["torch"]))


def test_sizes_that_the_module_refuses(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 2, 5)).eval()  # no padding: nothing below 5x5
    axes = ({0: "N", 2: "H", 3: "W"},)
    path = export(network, tmp_path / "m.onnx", "legacy", (torch.randn(2, 3, 9, 9),), ["x"], ["y"], axes)
    report = validate_onnx_against_module(path, network)
    assert report.verdict == "passed"
    assert {(r.size["H"], r.size["W"]) for r in report.refused} == {(1, 1), (2, 3), (3, 2), (1, 7), (5, 1)}
    assert all("Kernel size" in r.reason for r in report.refused)


def test_a_traced_size_frozen_into_the_file_is_caught(tmp_path):
    class Frozen(nn.Module):
        def forward(self, x):
            return x - torch.ones(x.shape[2], x.shape[3]) if torch.jit.is_tracing() else x - 1

    axes = ({0: "N", 2: "H", 3: "W"},)
    path = tmp_path / "m.onnx"
    export(Frozen(), path, "legacy", (torch.randn(2, 3, 9, 9),), ["x"], ["y"], axes)
    model = onnx.load(path)
    for node in model.graph.node:  # the exporter keeps the shape dynamic; freeze it as a careless one would
        if node.op_type == "ConstantOfShape":
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([9, 9]), "frozen"))
            node.input[0] = "frozen"
    onnx.save(model, path)
    sizes = [{"N": 1, "H": 9, "W": 9}, {"N": 1, "H": 8, "W": 8}]
    report = validate_onnx_against_module(path, Frozen(), ValidationOptions(inputs=InputOptions(sizes=sizes)))
    assert report.verdict == "differ"
    assert [c.verdict for c in report.comparisons if c.runtime == "ort"] == ["passed", "differ"]


def test_argmax_that_flips_by_rounding_is_unverified_not_wrong(tmp_path):
    class Ties(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            scores = torch.stack(
                [(x + 1e8) * self.scale, x * self.scale + 1e8 + 1], 1
            )  # float32 cannot tell them apart
            return scores.argmax(1)

    path = export(Ties(), tmp_path / "m.onnx", "legacy", (torch.randn(2, 5),), ["x"], ["y"], ({0: "N"},))
    report = validate_onnx_against_module(path, Ties())
    assert report.verdict == "unverified"
    assert "ties" in report.reason
    assert all(c.exact for c in report.comparisons)


@pytest.mark.parametrize(
    ("name", "metadata", "scope"),
    [
        ("/blocks/blocks.0/conv/Conv", None, "blocks.0.conv"),
        ("/net/body/body.1/act/Relu", None, "net.body.1.act"),
        ("/head/Conv", None, "head"),
        ("/Add", None, ""),
        ("Conv_12", None, ""),
        ("/elsewhere/Conv", None, ""),
        ("node_conv2d", "['', 'blocks', 'blocks.0', 'blocks.0.conv', 'conv2d']", "blocks.0.conv"),
        ("node_add", "['', 'add']", ""),
        ("node_add", "not a list", ""),
    ],
)
def test_scope_of_a_node(name, metadata, scope):
    node = onnx.helper.make_node("Conv", ["x"], ["y"], name)
    if metadata is not None:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=metadata)
    known = {"head", "blocks", "blocks.0", "blocks.0.conv", "net", "net.body", "net.body.1", "net.body.1.act"}
    assert node_scope(node, known) == scope


def test_a_file_without_scopes_says_so(tmp_path, exported):
    model = onnx.load(exported)
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
        del node.metadata_props[:]
    onnx.save(model, tmp_path / "stripped.onnx")
    network = make_network()
    with torch.no_grad():
        network.tail.bias += 1
    report = validate_onnx_against_module(tmp_path / "stripped.onnx", network)
    assert report.verdict == "differ"
    assert not report.divergence.found
    assert "no node of the file says" in report.divergence.reason


def test_a_module_that_became_a_function_is_found_by_its_call(tmp_path, exported):
    """The fused form: the call carries the scope, the nodes of the function's body carry none."""
    model = onnx.load(exported)
    call = next(n for n in model.graph.node if n.op_type == "Conv" and "tail.weight" in n.input)
    body = onnx.NodeProto()
    body.CopyFrom(call)
    body.name = "body"
    del body.metadata_props[:]
    names = [f"F_{i}" for i in range(len(call.input))]
    for index, name in enumerate(names):
        body.input[index] = name
    body.output[0] = "F_y"
    opset = [onnx.helper.make_opsetid("", 18)]
    model.functions.append(onnx.helper.make_function("msconv", "F", names, ["F_y"], [body], opset))
    call.op_type, call.domain = "F", "msconv"
    del call.attribute[:]
    model.opset_import.add(domain="msconv", version=1)
    onnx.save(model, tmp_path / "fused.onnx")
    assert validate_onnx_against_module(tmp_path / "fused.onnx", make_network()).verdict == "passed"
    network = make_network()
    with torch.no_grad():
        network.tail.weight[0, 3] += 0.25
    report = validate_onnx_against_module(tmp_path / "fused.onnx", network)
    assert report.divergence.module == "tail"
    assert report.divergence.last_agreeing_module in ("blocks", "blocks.1")
