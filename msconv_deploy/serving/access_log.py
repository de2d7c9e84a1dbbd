"""The access log: one JSON object for each request, on the logger ``msconv_deploy.serving.access``."""

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone

from msconv_deploy.serving.batching import Outcome

LOGGER = logging.getLogger(f"{__name__.rpartition('.')[0]}.access")

_MAX_TEXT = 300  # of what a client chose or an error says


@dataclass
class Call:
    """One request of either protocol, from the end of its header to its answer.

    Attributes:
        method: HTTP's method and path, or gRPC's method.
        status: HTTP's status, or gRPC's name; 499 and CANCELLED: the client has gone.
        infer: is it an inference request?
        request_id: the client's.
        outcome: how it was computed, if it was.
    """

    protocol: str
    peer: str
    method: str
    status: str = ""
    infer: bool = False
    request_id: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    error: str = ""
    outcome: Outcome | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


current_call: ContextVar[Call] = ContextVar("current_call")
"""The call that the running task serves."""


def write(call: Call) -> None:
    """Log a call that has been answered."""
    if not LOGGER.isEnabledFor(logging.INFO):
        return
    entry: dict[str, object] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "protocol": call.protocol,
        "peer": call.peer,
        "method": call.method[:_MAX_TEXT],
        "status": call.status,
        "ms": round(call.seconds * 1e3, 3),
    }
    if call.infer:
        entry |= {"id": call.request_id[:_MAX_TEXT], "bytes_in": call.bytes_in, "bytes_out": call.bytes_out}
    if call.outcome is not None:
        times = call.outcome.times
        entry |= {
            "waited_ms": round(call.outcome.waited * 1e3, 3),
            "run_ms": round(times.compute * 1e3, 3),
            "run_rows": times.rows,
            "run_requests": times.requests,
        }
    if call.error:
        entry["error"] = call.error[:_MAX_TEXT]
    LOGGER.info("%s", json.dumps(entry))
