"""PyTorch's adapter."""

from collections import OrderedDict

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'msconv-deploy[torch]'")

from torch import nn  # noqa: E402

from msconv_deploy.errors import BadInputError  # noqa: E402
from msconv_deploy.runtimes import Settings, get_runtime  # noqa: E402
from msconv_deploy.runtimes.pytorch import NamedModule, evaluate  # noqa: E402

F32 = np.dtype(np.float32)


class Minus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, a, b, c=None):
        return self.scale * (a - b) if c is None else c


FEED = {"b": np.ones(4, np.float32), "a": np.full(4, 2, np.float32)}


def named(module=None, inputs=("a", "b"), outputs=("y",)):
    return NamedModule(module or Minus(), dict.fromkeys(inputs, (F32, 1)), outputs)


def test_inputs_go_by_keyword_where_the_names_are_parameters():
    assert evaluate(named(inputs=("b", "a")), FEED)["y"].tolist() == [3.0] * 4


def test_and_by_position_where_they_are_not():
    feed = {"first": FEED["a"], "second": FEED["b"]}
    assert evaluate(named(inputs=("first", "second")), feed)["y"].tolist() == [3.0] * 4
    assert evaluate(named(inputs=("second", "first")), feed)["y"].tolist() == [-3.0] * 4


def test_the_runner_speaks_polygraphy():
    with get_runtime("torch").make_runner(named(), Settings(), "mine") as runner:
        assert runner.infer(FEED)["y"].tolist() == [3.0] * 4
        assert runner.last_inference_time() > 0


def test_float64_copy_widens_and_leaves_the_original():
    module = nn.Linear(3, 2).half()
    subject = NamedModule(module, {"input": (np.dtype(np.float16), 2)}, ["y"])
    wide = subject.in_float64()
    assert subject.dtype_name == "float16"
    assert wide.dtype_name == "float64"
    assert torch.equal(wide.module.weight, module.weight.double())
    x = np.ones((1, 3), np.float16)
    assert evaluate(wide, {"input": x})["y"].dtype == torch.float64
    assert evaluate(subject, {"input": x})["y"].dtype == torch.float16


def test_bfloat16_is_returned_as_float32():
    subject = NamedModule(nn.Linear(3, 2).bfloat16(), {"input": (F32, 2)}, ["y"])
    with get_runtime("torch").make_runner(subject, Settings(), "mine") as runner:
        y = runner.infer({"input": np.ones((1, 3), np.float32)})["y"]
    assert y.dtype == np.float32
    assert torch.equal(torch.from_numpy(y), torch.from_numpy(y).bfloat16().float())


def test_integers_keep_their_type():
    subject = NamedModule(nn.Embedding(5, 2), {"input": (np.dtype(np.int64), 1)}, ["y"])
    assert evaluate(subject.in_float64(), {"input": np.array([1, 4])})["y"].dtype == torch.float64


@pytest.mark.parametrize(
    "result", [lambda x: (x, [x + 1, None]), lambda x: {"p": x, "q": x + 1}, lambda x: OrderedDict(p=(x,), q=[x + 1])]
)
def test_nested_outputs_are_flattened(result):
    class Nested(nn.Module):
        def forward(self, a):
            return result(a)

    outputs = evaluate(named(Nested(), ["a"], ["one", "two"]), FEED)
    assert [v.tolist()[0] for v in outputs.values()] == [2.0, 3.0]
    with pytest.raises(BadInputError, match="returns 2 tensors, but 1 outputs are named: one"):
        evaluate(named(Nested(), ["a"], ["one"]), FEED)


def test_results_that_are_no_tensors():
    class Text(nn.Module):
        def forward(self, a):
            return "text"

    with pytest.raises(BadInputError, match="returns a str"):
        evaluate(named(Text(), ["a"]), FEED)


def test_modes_are_restored_after_an_error():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, a):
            assert not self.drop.training
            raise RuntimeError("no")

    module = Fails()
    module.drop.eval()
    with pytest.raises(RuntimeError):
        evaluate(named(module, ["a"]), FEED)
    assert module.training
    assert not module.drop.training
