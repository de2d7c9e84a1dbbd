"""What does serving cost, and does it hold? `msconv serve` against the session in the same process, and under load.

    python benchmarks/serving.py [--rounds 20] [--seconds 30] [--fuzz 10000] [--memory 20000]

The model is the tests' small one with all four sources; server and session use one thread each.

Latency of one client, in blocks of 20 requests that alternate between all ways: the session in this process, and the program
over HTTP (binary and JSON) and gRPC with `tritonclient`, inputs made and outputs read for every request. The overhead is
the difference of the medians.
Throughput of 16 connections (HTTP binary, from a process of its own, every answer compared): a server that joins requests
and one that does not, in turns; beside it how much faster 16 samples are in one direct run than in 16.
Load: 16 concurrent clients of mixed sizes with every kind of `tritonclient`; every answer compared with a direct run.
Fuzzing and memory: the tests of that name with more requests. 0 leaves a part out. Writes
benchmarks/results/serving.{json,md,png}.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.conditions import conditions, in_words  # noqa: E402
from msconv_deploy.reporting.versions import distribution_version  # noqa: E402
from tests.serving.client_suite import TOLERANCE, Endpoint, run_load, tensors, wishes  # noqa: E402
from tests.serving.networks import four_sources  # noqa: E402
from tests.serving.servers import start_program  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
CLIENTS, MAX_BATCH = 16, 16
BLOCK = 20
SIZES = (8, 16, 32, 64)
WAYS = ("http", "grpc", "http-aio", "grpc-aio")


@contextmanager
def served(folder: Path, model: Path, *options: str) -> Iterator[Endpoint]:
    """`msconv serve` as a program of its own, with its access log as by default, into a file."""
    place = folder / "-".join(("server", *options))
    place.mkdir()
    log = str(place / "access.log")
    process, report = start_program(place, model, "--threads", "1", "--access-log", log, *options)
    try:
        yield Endpoint(report["http"], report["grpc"], report["name"], model)
    finally:
        process.terminate()
        process.communicate(timeout=60)


# -- latency ---------------------------------------------------------------------------------------------------------


def latency(folder: Path, model: Path, rounds: int) -> list[dict[str, Any]]:
    """One row for each way: percentiles in ms and the overhead of the median."""
    with (
        served(folder, model) as endpoint,
        http_client.InferenceServerClient(endpoint.http) as over_http,
        grpc_client.InferenceServerClient(endpoint.grpc) as over_grpc,
    ):
        arrays = endpoint.inputs((1, 64, 64))
        names = ["y"]

        def ask(module: Any, client: Any, binary: dict[str, bool]) -> Callable[[], np.ndarray]:
            return lambda: client.infer(
                endpoint.model, tensors(module, arrays, **binary), outputs=wishes(module, names, **binary)
            ).as_numpy("y")

        ways = {
            "session in this process": lambda: endpoint.session.run(names, arrays)[0],
            "HTTP, binary": ask(http_client, over_http, {"binary_data": True}),
            "gRPC": ask(grpc_client, over_grpc, {}),
            "HTTP, JSON": ask(http_client, over_http, {"binary_data": False}),
        }
        wanted = ways["session in this process"]()
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for way, call in ways.items():
            for _ in range(BLOCK):
                assert np.abs(call() - wanted).max() <= TOLERANCE[wanted.dtype] * np.abs(wanted).max(), way
        for _ in range(rounds):
            for way, call in ways.items():
                for _ in range(BLOCK):
                    start = time.perf_counter()
                    call()
                    seconds[way].append(time.perf_counter() - start)
    base = statistics.median(seconds["session in this process"])
    return [
        {"way": way, "requests": len(found), "overhead": (statistics.median(found) - base) * 1e3}
        | {f"p{p}": float(np.percentile(found, p)) * 1e3 for p in (5, 50, 90, 99)}
        for way, found in seconds.items()
    ]


# -- throughput --------------------------------------------------------------------------------------------------------


def throughput(folder: Path, model: Path, seconds: float) -> list[dict[str, Any]]:
    """One row for each size: requests per second, joined and not, and what a direct run of a batch gains."""
    rows = []
    with (
        served(folder, model, "--max-batch", str(MAX_BATCH)) as joined,
        served(folder, model, "--max-batch", "1") as single,
    ):
        for size in SIZES:
            rates: dict[str, list[float]] = {"joined": [], "single": []}
            for _ in range(4):
                for name, endpoint in (("joined", joined), ("single", single)):
                    rates[name].append(_rate(endpoint, size, seconds / 4))
            row: dict[str, Any] = {"size": size, "direct_gain": _direct_gain(joined, size), **_batches(joined)}
            row |= {name: statistics.median(found) for name, found in rates.items()}
            row["gain"] = statistics.geometric_mean(
                a / b for a, b in zip(rates["joined"], rates["single"], strict=True)
            )
            row["pairs"] = [a / b for a, b in zip(rates["joined"], rates["single"], strict=True)]
            rows.append(row)
    return rows


def _rate(endpoint: Endpoint, size: int, seconds: float) -> float:
    command = [sys.executable, __file__, "--child", endpoint.http, str(endpoint.reference), str(size), str(seconds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def child(address: str, model: str, size: int, seconds: float) -> None:
    """16 connections that ask as fast as they are answered; prints right answers per second."""
    endpoint = Endpoint(address, "", Path(model).stem, Path(model))
    cases = []
    for seed in range(CLIENTS):
        arrays = endpoint.inputs((1, size, size), seed)
        body, length = http_client.InferenceServerClient.generate_request_body(
            tensors(http_client, arrays), outputs=wishes(http_client, ["y"], binary_data=True)
        )
        head = f"POST /v2/models/{endpoint.model}/infer HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n"
        head += f"Inference-Header-Content-Length: {length}\r\n\r\n"
        cases.append((head.encode() + body, endpoint.direct(arrays)["y"].ravel()))
    host, _, port = address.rpartition(":")

    async def client(message: bytes, wanted: np.ndarray, begin: float, end: float) -> int:
        reader, writer = await asyncio.open_connection(host, int(port))
        tolerance, count = TOLERANCE[wanted.dtype] * np.abs(wanted).max(), 0
        while time.monotonic() < end:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
            assert length is not None, head
            body = await reader.readexactly(int(length[1]))
            answer = np.frombuffer(body[-wanted.nbytes :], wanted.dtype)
            assert np.abs(answer - wanted).max() <= tolerance
            count += time.monotonic() >= begin
        writer.close()
        return count

    async def run() -> int:
        begin = time.monotonic() + min(0.5, seconds / 2)  # the first requests meet a server that has not seen this size
        return sum(await asyncio.gather(*(client(*case, begin, begin + seconds) for case in cases)))

    print(asyncio.run(run()) / seconds)


def _direct_gain(endpoint: Endpoint, size: int) -> float:
    """Seconds of 16 runs of one sample / seconds of one run of 16, median over alternating pairs."""
    one, many = endpoint.inputs((1, size, size)), endpoint.inputs((MAX_BATCH, size, size))
    ratios = []
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(MAX_BATCH):
            endpoint.session.run(["y"], one)
        between = time.perf_counter()
        endpoint.session.run(["y"], many)
        ratios.append((between - start) / (time.perf_counter() - between))
    return statistics.median(ratios)


def _batches(endpoint: Endpoint) -> dict[str, float]:
    """Requests per run so far."""
    with http_client.InferenceServerClient(endpoint.http) as client:
        stats = client.get_inference_statistics(endpoint.model)["model_stats"][0]
    return {"rows_per_run_so_far": stats["inference_count"] / max(1, stats["execution_count"])}


# -- does it hold? -----------------------------------------------------------------------------------------------------


def load(folder: Path, model: Path, seconds: float) -> dict[str, Any]:
    """Every kind of client for a share of the time."""
    result: dict[str, Any] = {"seconds": seconds, "sent": 0, "right": 0, "problems": []}
    with served(folder, model, "--queue", "64") as endpoint:
        for way in WAYS:
            tally = run_load(endpoint, way, seconds / len(WAYS), CLIENTS)
            result["sent"] += tally.sent
            result["right"] += tally.right
            result["problems"] += tally.problems[:5]
            result[way] = tally.right
    return result


def long_test(name: str, variable: str, count: int) -> dict[str, Any]:
    """A test of the suite with another number of requests; what it prints."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-n", "0", "-p", "no:cacheprovider", f"tests/serving/{name}"],
        cwd=ROOT, env=os.environ | {variable: str(count)}, capture_output=True, text=True,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith("resident")]
    problem = "" if done.returncode == 0 else done.stdout[-2000:]
    return {
        "requests": count,
        "passed": done.returncode == 0,
        "seconds": round(time.perf_counter() - start, 1),
        "said": " ".join(said),
        "problem": problem,
    }


# -- the report --------------------------------------------------------------------------------------------------------


def report(content: dict[str, Any]) -> str:
    lines = [
        f"`{content['command']}`; {in_words(content['conditions'])} Load {content['load_after']} after.",
        "",
        "One client, one image of 64x64 with rows, columns and scalars (50 kB); ms",
        "",
        "| way | p5 | p50 | p90 | p99 | overhead of p50 |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["latency"]:
        cells = " | ".join(f"{row[key]:.2f}" for key in ("p5", "p50", "p90", "p99"))
        overhead = "" if row["way"].startswith("session") else f"{row['overhead']:.2f}"
        lines.append(f"| {row['way']} | {cells} | {overhead} |")
    if content["throughput"]:
        lines += [
            "",
            f"{CLIENTS} connections over HTTP, requests per second; gain: geometric mean over 4 pairs of runs in turns",
            "",
            "| image | joined (at most 16) | one by one | gain (each pair) | gain of a direct run of 16 |",
            "|---|---|---|---|---|",
        ]
        for row in content["throughput"]:
            pairs = ", ".join(f"{pair:.2f}" for pair in row["pairs"])
            lines.append(
                f"| {row['size']}x{row['size']} | {row['joined']:.0f} | {row['single']:.0f} | x{row['gain']:.2f} ({pairs}) "
                f"| x{row['direct_gain']:.2f} |"
            )
    lines += ["", "| under load | requests | result |", "|---|---|---|"]
    if held := content["load"]:
        wrong = held["sent"] - held["right"]
        shares = ", ".join(f"{way} {held[way]}" for way in WAYS)
        lines.append(
            f"| {CLIENTS} clients, mixed sizes, {held['seconds']:g} s | {held['sent']} ({shares}) | {wrong} wrong or lost |"
        )
    for name, text in (("fuzzing", "malformed HTTP and gRPC requests"), ("memory", "memory")):
        if done := content[name]:
            result = done["said"] or ("every one answered, none with an internal error" if done["passed"] else "")
            lines.append(f"| {text} | {done['requests']} | {'passed' if done['passed'] else 'FAILED'}: {result} |")
    return "\n".join(lines) + "\n"


def plot(content: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    rows = content["latency"][::-1]
    places = np.arange(len(rows))
    middle = np.array([row["p50"] for row in rows])
    spread = [middle - [row["p5"] for row in rows], np.array([row["p90"] for row in rows]) - middle]
    left.barh(places, middle, xerr=spread, color="tab:blue", error_kw={"elinewidth": 0.8, "capsize": 2})
    left.set_xscale("log")
    left.set_yticks(places, [row["way"] for row in rows])
    left.set_xlabel("ms for one 64x64 image: median, 5th and 90th percentile")
    if rates := content["throughput"]:
        places = np.arange(len(rates))
        right.bar(places - 0.2, [row["single"] for row in rates], 0.4, label="one by one", color="silver")
        right.bar(places + 0.2, [row["joined"] for row in rates], 0.4, label="joined", color="tab:blue")
        for place, row in zip(places, rates, strict=True):
            right.text(place + 0.2, row["joined"], f"x{row['gain']:.2f}", ha="center", va="bottom", fontsize=8)
        right.set_xticks(places, [f"{row['size']}x{row['size']}" for row in rates])
        right.set_ylabel(f"requests per second, {CLIENTS} connections")
        right.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="blocks of 20 requests for each way")
    parser.add_argument("--seconds", type=float, default=30, help="of load; throughput takes a thirtieth for each run")
    parser.add_argument("--fuzz", type=int, default=10000, help="malformed requests")
    parser.add_argument("--memory", type=int, default=20000, help="requests over which memory is watched")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], int(args.child[2]), float(args.child[3]))
        return 0
    names = ("starlette", "uvicorn", "grpcio", "tritonclient")
    when = conditions()
    when["versions"] |= {package: distribution_version(package) for package in names}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = four_sources(folder / "sources.onnx")
        content: dict[str, Any] = {
            "command": f"python benchmarks/serving.py --rounds {args.rounds} --seconds {args.seconds:g} "
            f"--fuzz {args.fuzz} --memory {args.memory}",
            "conditions": when,
            "latency": latency(folder, model, args.rounds),
        }
    with tempfile.TemporaryDirectory() as name:
        model = four_sources(Path(name) / "sources.onnx")
        content["throughput"] = throughput(Path(name), model, args.seconds / 7.5) if args.seconds else []
        content["load"] = load(Path(name), model, args.seconds) if args.seconds else None
    tests = {
        "fuzzing": ("test_faults.py::test_fuzzed_requests", "MSCONV_FUZZ_REQUESTS", args.fuzz),
        "memory": ("test_serve_cli.py::test_memory_does_not_grow", "MSCONV_MEMORY_REQUESTS", args.memory),
    }
    for key, (test, variable, count) in tests.items():
        content[key] = long_test(test, variable, count) if count else None
    content["load_after"] = round(os.getloadavg()[0], 1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "serving.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / "serving.md").write_text(report(content))
    plot(content, RESULTS / "serving.png")
    print(report(content))
    failed = [key for key in tests if content[key] and not content[key]["passed"]]
    lost = content["load"] and content["load"]["sent"] != content["load"]["right"]
    return int(bool(failed or lost))


if __name__ == "__main__":
    sys.exit(main())
