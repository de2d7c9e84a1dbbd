"""Running servers for tests: inside this process, or as the program."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msconv_deploy.serving.model import Model
from msconv_deploy.serving.server import Server
from msconv_deploy.serving.service import Limits


@contextmanager
def running(model: Model, limits: Limits | None = None, host: str = "127.0.0.1") -> Iterator[Server]:
    """A server on free ports, on a thread of its own; stopped, and its requests finished, at the end."""
    server = Server(model, limits or Limits(), host, http_port=0, grpc_port=0)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    problems: list[BaseException] = []

    async def run() -> None:
        await server.start()
        started.set()
        await stop.wait()
        await server.stop()

    def main() -> None:
        try:
            loop.run_until_complete(run())
        except BaseException as error:
            problems.append(error)
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=main)
    thread.start()
    started.wait(60)
    try:
        if problems:
            raise problems[0]
        yield server
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(60)
    assert not thread.is_alive()
    assert problems == []


def start_program(folder: Path, model: Path, *options: str) -> tuple[subprocess.Popen, dict]:
    """`msconv serve` on free ports, and its report, when it answers."""
    report = folder / "serve.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-c", PROGRAM]
    command += ["serve", str(model), "--port", "0", "--grpc-port", "0", "--json", str(report), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while not report.exists():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.01)
    return process, json.loads(report.read_text())


PROGRAM = "from msconv_deploy.cli.main import run; run()"
