"""Graphs of NNSmith through the optimizer: a second source of graphs, which knows nothing of our rules.

    python -m tests.fuzz.nnsmith.fuzz [-n 100] [--first 0] [--nodes 8]        (or make fuzz-nnsmith)

NNSmith (github.com/ise-uiuc/nnsmith, PyPI ``nnsmith``) draws valid models by solving constraints. It is installed with a torch
of its own into ``build/nnsmith-venv`` and writes its graphs there. Each is checked as it is, and once more with metadata: every
image among its outputs is joined with tiled scalars and a tiled line and convolved, so that the rules have something to do on
top of operators that nobody chose for them. What has to hold is what ``tests/fuzz/graphs/checking.py`` asks of our own graphs.
Exit code 1: something failed; 3: NNSmith cannot be had here, and nothing was tested.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz.graphs.case import Case, save
from tests.fuzz.graphs.checking import Outcome, check

ROOT = Path(__file__).parents[3]
VENV = ROOT / "build" / "nnsmith-venv"
REQUIREMENTS = ("nnsmith==0.1.0", "torch==2.13.0", "onnx>=1.18")
"""NNSmith is older than all of them; ``generate.py`` asks torch for the exporter that it knows."""
FAILED = ROOT / "build" / "fuzz" / "nnsmith"
NOT_AVAILABLE = 3
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class NoNNSmithError(Exception):
    """It cannot be installed here."""


def install() -> None:
    """Make the virtual environment.

    Raises:
        NoNNSmithError: pip could not.
    """
    stamp = VENV / ".installed"
    if stamp.is_file() and stamp.read_text() == "\n".join(REQUIREMENTS):
        return
    print(f"installing {' '.join(REQUIREMENTS)} into {VENV.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS]
    run = subprocess.run(pip, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        raise NoNNSmithError(f"pip could not install {' '.join(REQUIREMENTS)}: {run.stderr.strip()[-500:]}")
    stamp.write_text("\n".join(REQUIREMENTS))


def generate(folder: Path, seeds: range, nodes: int) -> list[Path]:
    """Graphs of these seeds, written to a folder. A seed may have none.

    Raises:
        NoNNSmithError: it is installed and does not run.
    """
    program = Path(__file__).with_name("generate.py")
    arguments = [str(folder), str(seeds.start), str(len(seeds)), str(nodes)]
    run = subprocess.run(
        [str(VENV / "bin" / "python"), str(program), *arguments], capture_output=True, text=True, cwd=VENV
    )
    if run.returncode:
        raise NoNNSmithError(f"its generator does not run: {run.stderr.strip()[-500:]}")
    return [path for seed in seeds if (path := folder / f"{seed}.onnx").exists()]


def with_metadata(model: onnx.ModelProto, seed: int) -> onnx.ModelProto | None:
    """Every image among the outputs joined with three tiled scalars and a tiled line, and convolved; None if there is none."""
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    graph, rng = joined.graph, np.random.default_rng(seed)
    images = [v for v in model.graph.output if _is_image(v)]
    for value in images:
        name, kind = value.name, value.type.tensor_type.elem_type
        n, c, h, w = (d.dim_value for d in value.type.tensor_type.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        cores = {f"{name}/scalars": [n, 3, 1, 1], f"{name}/line": [n, 2, h, 1]}
        for core, shape in cores.items():
            graph.input.append(helper.make_tensor_value_info(core, kind, shape))
            target = numpy_helper.from_array(np.array([n, shape[1], h, w]), f"{core} target")
            graph.initializer.append(target)
            graph.node.append(helper.make_node("Expand", [core, target.name], [f"{core} tiled"], f"tile {core}"))
        kernel = [int(rng.integers(1, 4)), int(rng.integers(1, 4))]
        pads = [int(rng.integers(k)) for k in kernel] + [k - 1 for k in kernel]
        weight = (rng.standard_normal((4, c + 5, *kernel)) / np.sqrt((c + 5) * np.prod(kernel))).astype(dtype)
        graph.initializer.append(numpy_helper.from_array(weight, f"{name}/weight"))
        operands = [name, *(f"{core} tiled" for core in cores)]
        graph.node.append(helper.make_node("Concat", operands, [f"{name}/joined"], f"join {name}", axis=1))
        conv = [f"{name}/joined", f"{name}/weight"]
        graph.node.append(helper.make_node("Conv", conv, [f"{name}/convolved"], f"convolve {name}", pads=pads))
        graph.output.append(helper.make_tensor_value_info(f"{name}/convolved", kind, None))
    if not images:
        return None
    return onnx.shape_inference.infer_shapes(joined)


def _is_image(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.elem_type in _FLOATS and len(kind.shape.dim) == 4 and all(d.dim_value for d in kind.shape.dim)


def fuzz(paths: Sequence[Path]) -> tuple[Counter[str], Counter[str], list[str]]:
    """(kinds of outcomes, rewritten sites by rule, failures in words); failing models are kept in :data:`FAILED`."""
    kinds, rules, failures = Counter[str](), Counter[str](), []
    for path in paths:
        model = onnx.load(path)
        for label, each in (("as it is", model), ("with metadata", with_metadata(model, int(path.stem)))):
            if each is None:
                continue
            case = Case(each, [{}], parts=("nnsmith", label))
            outcome = _checked(case)
            kinds[f"{label}: {outcome.kind}"] += 1
            rules.update(outcome.rewritten)
            if outcome.failed:
                place = FAILED / f"{path.stem} {label}.onnx"
                save(case, place, outcome.detail)
                failures.append(f"{place.relative_to(ROOT)}: {outcome.kind}: {outcome.detail}")
    return kinds, rules, failures


def _checked(case: Case) -> Outcome:
    with np.errstate(all="ignore"):  # overflow is what NNSmith's graphs may compute
        return check(case)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz.nnsmith.fuzz", description="Graphs of NNSmith.")
    parser.add_argument("-n", type=int, default=100, help="graphs to draw (default 100)")
    parser.add_argument("--first", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--nodes", type=int, default=8, help="operators of a graph (default 8)")
    given = parser.parse_args(argv)
    folder = VENV / f"graphs-{given.nodes}"
    try:
        install()
        paths = generate(folder, range(given.first, given.first + given.n), given.nodes)
    except (NoNNSmithError, OSError, subprocess.CalledProcessError) as error:
        print(f"NNSmith cannot be had here, nothing was tested: {error}", file=sys.stderr)
        return NOT_AVAILABLE
    kinds, rules, failures = fuzz(paths)
    print(f"{len(paths)} graphs from {given.n} seeds")
    for title, counts in (("outcomes", kinds), ("rewritten", rules)):
        print(f"{title}: " + (", ".join(f"{key} {n}" for key, n in sorted(counts.items())) or "none"))
    print("\n".join(failures) or "no failures")
    return 1 if failures or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
