"""What both protocols call: one model, its limits, and everything that the protocol tells about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from msconv_deploy import __version__
from msconv_deploy.serving import access_log
from msconv_deploy.serving.access_log import Call
from msconv_deploy.serving.batching import Batcher, Outcome, RunTimes
from msconv_deploy.serving.errors import QueueFullError, StoppingError, TimedOutError, UnknownModelError
from msconv_deploy.serving.metrics import Metrics
from msconv_deploy.serving.model import VERSION, Model
from msconv_deploy.serving.protocol import InferRequest
from msconv_deploy.serving.runtime import Tensor
from msconv_deploy.serving.statistics import Statistics

EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        max_body: bytes of one request.
        timeout: seconds from the end of a request's header to its answer; over HTTP, as many before for the header.
        queue: requests of both protocols together that are accepted and not yet answered.
        max_batch: samples that are joined in one run.
        max_delay: seconds that a request waits for others to join it.
        connections: of HTTP, at a time.
    """

    max_body: int = 64 << 20
    timeout: float = 30.0
    queue: int = 128
    max_batch: int = 16
    max_delay: float = 0.0
    connections: int = 512


class Service:
    """One model that answers requests. Lives on one event loop."""

    def __init__(self, model: Model, limits: Limits) -> None:
        most_rows = model.runtime.most_rows
        if most_rows is not None and most_rows < limits.max_batch:
            limits = replace(limits, max_batch=most_rows)
        self.model, self.limits = model, limits
        self.statistics = Statistics(limits.max_batch)
        self.batcher = Batcher(model, limits.max_batch, limits.max_delay, self._ran, lambda: self.unanswered == 1)
        self.metrics = Metrics(model.name, lambda: self.batcher.length, lambda: self.unanswered)
        self.unanswered = 0
        self.ready = False

    def start(self) -> None:
        self.ready = True

    def refuse_new(self) -> None:
        """From now on new requests are refused; those that are accepted are finished."""
        self.ready = False

    async def stop(self) -> None:
        """Finish what is accepted, then end."""
        self.refuse_new()
        await self.batcher.stop()

    # -- inference -----------------------------------------------------------------------------------------------------

    @contextmanager
    def accept(self) -> Iterator[None]:
        """One inference request, from before its body is read until it is answered.

        Raises:
            StoppingError, QueueFullError
        """
        if not self.ready:
            raise StoppingError("the server is stopping")
        if self.unanswered >= self.limits.queue:
            raise QueueFullError(
                f"the queue is full: {self.limits.queue} requests are not yet answered; try again later"
            )
        self.unanswered += 1
        try:
            yield
        finally:
            self.unanswered -= 1

    def submit(self, request: InferRequest, call: Call) -> asyncio.Future[Outcome]:
        """Have a request computed that was accepted. Cancel the future where nobody waits for it any longer.

        The future raises TimedOutError (the server's or the client's limit), or InvalidRequestError and RunFailedError
        from the model.
        """
        left, allowed = remaining(call, self.limits), self.limits.timeout
        if request.timeout is not None and request.timeout < left:
            left = allowed = request.timeout
        future = self.batcher.submit(request.feeds, [wish.name for wish in request.wishes])

        def too_late() -> None:
            if not future.done():
                future.set_exception(TimedOutError(f"not answered within {allowed:g} s"))

        timer = asyncio.get_running_loop().call_later(left, too_late)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def finished(self, call: Call) -> None:
        """Count and log a call that has been answered."""
        if call.infer:
            self.statistics.answered(call.seconds, None if call.error else call.outcome)
            self.metrics.answered(call.protocol, call.status, call.seconds)
        access_log.write(call)

    def _ran(self, times: RunTimes) -> None:
        self.statistics.ran(times)
        self.metrics.ran(times)

    # -- information ---------------------------------------------------------------------------------------------------

    def check_model(self, name: str, version: str = "") -> None:
        """Raises:
        UnknownModelError: it is not the one that is served.
        """
        if name != self.model.name:
            raise UnknownModelError(f"model {name[:80]!r} is not served here; this server has {self.model.name!r}")
        if version not in ("", VERSION):
            raise UnknownModelError(f"model {name!r} has no version {version[:20]!r}, only {VERSION}")

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "msconv-deploy", "version": __version__, "extensions": EXTENSIONS}

    def model_metadata(self) -> dict[str, Any]:
        def described(tensor: Tensor) -> dict[str, Any]:
            return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}

        return {
            "name": self.model.name,
            "versions": [VERSION],
            "platform": self.model.runtime.platform,
            "inputs": [described(tensor) for tensor in self.model.inputs],
            "outputs": [described(tensor) for tensor in self.model.outputs],
        }

    def model_statistics(self) -> dict[str, Any]:
        return self.statistics.report(self.model)

    def model_config(self) -> dict[str, Any]:
        """As Triton would have it: with a batch axis, that axis is not among the dims."""
        batched = not self.model.batching

        def described(tensor: Tensor) -> dict[str, Any]:
            dims = tensor.shape[1:] if batched else tensor.shape
            return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": dims}

        config: dict[str, Any] = {
            "name": self.model.name,
            "platform": self.model.runtime.platform,
            "backend": self.model.runtime.backend,
            "max_batch_size": self.limits.max_batch if batched else 0,
            "input": [described(tensor) for tensor in self.model.inputs],
            "output": [described(tensor) for tensor in self.model.outputs],
            "instance_group": [
                {"count": 1, "kind": "KIND_CPU" if self.model.runtime.provider == "cpu" else "KIND_GPU"}
            ],
        }
        if batched:
            config["dynamic_batching"] = {"max_queue_delay_microseconds": round(self.limits.max_delay * 1e6)}
        return config


def remaining(call: Call, limits: Limits) -> float:
    """Seconds that are left of a call's time; not negative."""
    return max(0.0, call.started + limits.timeout - time.perf_counter())
