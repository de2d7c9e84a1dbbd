"""Denoise a folder of raw frames on a server: `msconv serve` or NVIDIA Triton, without a change.

    msconv serve build/export/raw_denoiser/raw_denoiser.portable.fp32.onnx --name raw_denoiser
    python -m examples.make_frames frames
    python -m examples.denoise_folder frames denoised

Frames and their metadata are described in ``frames.py``. Several requests are under way at once, but no more than
--concurrency; a server that is full (503) or gone for a moment is asked again, later and later. Results that are there
already are kept, so that an interrupted run goes on where it was. Exit codes: 0, 1 some frames failed, 2 bad input,
3 no server.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import tritonclient.grpc.aio as grpc_client
import tritonclient.http.aio as http_client
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from examples.frames import find_frames, read_frame, write_result
from msconv_deploy.errors import BadInputError, MsconvError, NotAvailableError

SOURCES = ("nchw", "nch", "ncw", "nc")
_PORTS = {"http": 8000, "grpc": 8001}
# The server is full, starting, stopping, or behind a proxy that does not reach it.
_BUSY = {"502", "503", "504", "StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED", "StatusCode.DEADLINE_EXCEEDED"}
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0  # seconds


@dataclass
class Outcome:
    """What became of the frames."""

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    retries: int = 0


class Denoiser:
    """The model on the server.

    Args:
        url: host:port.
        protocol: http or grpc.
        timeout: seconds for one try.
        retries: further tries of one request.
    """

    def __init__(self, url: str, protocol: str, model: str, timeout: float, retries: int) -> None:
        self.module = {"http": http_client, "grpc": grpc_client}[protocol]
        self.url, self.model, self.timeout, self.retries = url, model, timeout, retries
        self.retried = 0
        self._dtypes: dict[str, Any] = {}
        self._output = ""

    async def __aenter__(self) -> Denoiser:
        self.client = self.module.InferenceServerClient(self.url)
        try:
            await self._read_metadata()
        except BaseException:
            await self.client.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.close()

    async def _read_metadata(self) -> None:
        """Is it the denoiser, and which types does it take?"""
        found: Any = await self._patiently(lambda: self.client.get_model_metadata(self.model))
        if isinstance(found, Mapping):
            inputs = {entry["name"]: entry["datatype"] for entry in found["inputs"]}
            outputs = [entry["name"] for entry in found["outputs"]]
        else:
            inputs = {entry.name: entry.datatype for entry in found.inputs}
            outputs = [entry.name for entry in found.outputs]
        if set(inputs) != set(SOURCES) or len(outputs) != 1:
            raise BadInputError(
                f"{self.model} on {self.url} has the inputs {', '.join(inputs)} and the outputs {', '.join(outputs)}; a "
                f"denoiser has {', '.join(SOURCES)} and one output"
            )
        self._dtypes = {name: triton_to_np_dtype(datatype) for name, datatype in inputs.items()}
        self._output = outputs[0]

    async def denoise(self, arrays: Mapping[str, NDArray], identity: str) -> NDArray:
        """[1, 4, H, W] noisy -> clean."""
        inputs = []
        for name in SOURCES:
            array = arrays[name].astype(self._dtypes[name])
            entry = self.module.InferInput(name, list(array.shape), _datatype(array))
            entry.set_data_from_numpy(array)
            inputs.append(entry)
        outputs = [self.module.InferRequestedOutput(self._output)]
        result = await self._patiently(
            lambda: self.client.infer(self.model, inputs, outputs=outputs, request_id=identity)
        )
        denoised: NDArray = result.as_numpy(self._output)
        if denoised.shape != arrays["nchw"].shape:
            raise BadInputError(f"the server answered {list(denoised.shape)} to {list(arrays['nchw'].shape)}")
        return denoised

    async def _patiently(self, request: Any) -> Any:
        """Ask again where that may help; waits grow and vary, so that clients do not come back all at once."""
        for attempt in range(self.retries + 1):
            try:
                return await asyncio.wait_for(request(), self.timeout)
            except InferenceServerException as error:
                if error.status() not in _BUSY:
                    raise BadInputError(f"{self.url} refused: {error.message()}") from None
                reason = f"{error.status()}: {error.message()}"
            except (aiohttp.ClientConnectionError, ConnectionError) as error:
                reason = str(error)
            except aiohttp.ClientResponseError:
                raise BadInputError(
                    f"{self.url} does not answer in HTTP: is it the port of gRPC (--protocol grpc), or another server's?"
                ) from None
            except (asyncio.TimeoutError, TimeoutError):
                reason = f"no answer within {self.timeout:g} s"
            if attempt < self.retries:
                self.retried += 1
                await asyncio.sleep(min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0))
        raise NotAvailableError(
            f"{self.url}: {reason}; given up after {self.retries + 1} tries. Is `msconv serve` or Triton running there, with "
            f"this port for {'HTTP' if self.module is http_client else 'gRPC'}?"
        )


def _datatype(array: NDArray) -> str:
    return {"float16": "FP16", "float32": "FP32"}[array.dtype.name]


async def denoise_folder(
    frames: Sequence[Path], output: Path, denoiser: Denoiser, concurrency: int, progress: Progress
) -> Outcome:
    """Send all frames, at most ``concurrency`` at once; one that fails does not stop the others.

    Only the frames under way are in memory. Files are read and written on threads, while others are computed.
    """
    outcome = Outcome()
    task = progress.add_task("denoising", total=len(frames))
    waiting = iter(frames)

    async def work() -> None:
        for path in waiting:  # shared: each frame goes to the worker that is free
            try:
                frame = await asyncio.to_thread(read_frame, path)
                denoised = await denoiser.denoise(frame.inputs, path.name)
                outcome.written.append(await asyncio.to_thread(write_result, frame, denoised, output))
            except MsconvError as error:
                outcome.failed[path] = str(error)
                progress.console.print(f"{path.name}: {error}", markup=False, style="red", soft_wrap=True)
            progress.advance(task)

    await asyncio.gather(*(work() for _ in range(concurrency)))
    outcome.retries = denoiser.retried
    return outcome


async def run(options: argparse.Namespace, console: Console) -> Outcome:
    """Everything that the command line asks for.

    Raises:
        MsconvError: the folder, the server or the model is not what it should be.
    """
    found = find_frames(options.frames)
    if options.output.resolve() == options.frames.resolve():
        raise BadInputError(f"{options.output}: would replace the frames; name another folder")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"{options.output}: cannot be made a folder: {error.strerror or error}") from None
    kept = [] if options.force else [path for path in found if (options.output / path.name).exists()]
    url = (options.url or f"127.0.0.1:{_PORTS[options.protocol]}").removeprefix(f"{options.protocol}://").rstrip("/")
    if "://" in url:
        raise BadInputError(f"--url {url}: with --protocol {options.protocol}, write host:port alone")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    denoiser = Denoiser(url, options.protocol, options.model, options.timeout, options.retries)
    async with denoiser:
        with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
            left = [path for path in found if path not in set(kept)]
            outcome = await denoise_folder(left, options.output, denoiser, options.concurrency, progress)
    outcome.kept = kept
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Denoise a folder of raw frames on a server.")
    parser.add_argument("frames", type=Path, help="folder of frames with their metadata")
    parser.add_argument("output", type=Path, help="folder for the results")
    parser.add_argument("--url", help="host:port; default 127.0.0.1 and the protocol's usual port")
    parser.add_argument("--protocol", choices=list(_PORTS), default="http")
    parser.add_argument("--model", default="raw_denoiser", help="its name on the server")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at once")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for one try")
    parser.add_argument("--retries", type=int, default=8, help="further tries of a request that the server cannot take")
    parser.add_argument("--force", action="store_true", help="also where a result is there already")
    options = parser.parse_args(arguments)
    if options.concurrency < 1 or options.retries < 0 or options.timeout <= 0:
        parser.error("--concurrency is at least 1, --retries at least 0, --timeout above 0")
    console = Console(stderr=True)
    start = time.perf_counter()
    try:
        outcome = asyncio.run(run(options, console))
    except MsconvError as error:
        console.print(str(error), markup=False, style="red", soft_wrap=True)
        return int(error.exit_code)
    except KeyboardInterrupt:
        console.print("interrupted; run it again to go on", markup=False)
        return 130
    seconds = time.perf_counter() - start
    console.print(
        f"{len(outcome.written)} frames denoised in {seconds:.1f} s, {len(outcome.kept)} were there already, "
        f"{len(outcome.failed)} failed, {outcome.retries} requests were repeated",
        markup=False,
        soft_wrap=True,
    )
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
