"""What ends a verb's process from below ends in a message, an exit code, and in nothing that still runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msconv_deploy.errors import ExitCode

if not hasattr(signal, "sigwaitinfo"):
    pytest.skip("this system cannot wait for signals", allow_module_level=True)

PROGRAM = """
import os, signal, sys, time
from msconv_deploy.cli.guard import guarded

def work():
    print("working", os.getpid(), flush=True)
    {work}

print("before", end=" ")
sys.exit(guarded(work, ["verb", "a\\x1b.onnx"]))
"""
NEVER = "time.sleep(120); return 0"


def start(work: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def started(work: str) -> tuple[subprocess.Popen, int]:
    """The program and the process that works, which has begun."""
    process = start(work)
    return process, int(process.stdout.readline().split()[-1])


def gone(number: int) -> bool:
    """Within ten seconds. A process that nobody has waited for is gone as well."""
    for _ in range(200):
        try:
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_exit_code_is_that_of_the_work(code):
    out, err = (process := start(f"return {code}")).communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    assert out.split()[:2] == ["before", "working"]  # once, though two processes had it in their buffers


@pytest.mark.parametrize(
    ("work", "name"), [("os.abort()", "SIGABRT"), ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV")]
)
def test_native_code_that_ends_the_process(work, name):
    _, err = (process := start(work)).communicate(timeout=60)
    assert process.returncode == ExitCode.NOT_AVAILABLE
    assert err.startswith(f"msconv verb a\N{SYMBOL FOR ESCAPE}.onnx: native code ended the process ({name})")
    assert "another version" in err


def test_a_process_that_the_system_kills():
    _, err = (process := start("os.kill(os.getpid(), signal.SIGKILL)")).communicate(timeout=60)
    assert process.returncode == ExitCode.NOT_AVAILABLE
    assert "killed (SIGKILL)" in err
    assert "memory" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on(number):
    process, child = started(NEVER)
    process.send_signal(number)
    assert process.wait(60) == -number
    assert gone(child)


def test_work_may_end_in_its_own_way():
    """As `main` does on an interrupt: code 130 after cleaning up."""
    process, child = started("try:\n        time.sleep(120)\n    except KeyboardInterrupt:\n        return 130")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert gone(child)


def test_an_interrupt_of_the_terminal_arrives_once():
    """A terminal sends it to the whole group; a second one would end the cleaning up."""
    work = """
    arrived = []
    signal.signal(signal.SIGINT, lambda *_: arrived.append(1))
    for _ in range(40):
        time.sleep(0.05)
    return 100 + len(arrived)"""
    primary, secondary = os.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)" + PROGRAM.format(work=work),
        ],
        stdin=secondary,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()
    time.sleep(0.5)
    os.write(primary, b"\x03")
    assert process.wait(60) == 101
    os.close(primary)
    os.close(secondary)


def test_a_parent_that_is_killed_takes_its_child_along():
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    process, child = started(NEVER)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert gone(child)


def test_verbs_that_read_models_are_guarded(tmp_path):
    """The program itself: another process works, and bad input still is bad input."""
    (tmp_path / "m.onnx").write_bytes(b"no model")
    done = subprocess.run(
        [sys.executable, "-c", "from msconv_deploy.cli.main import run; run()", "inspect", tmp_path / "m.onnx"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.BAD_INPUT
    assert "m.onnx" in done.stderr
    code = (
        "import os; from msconv_deploy.cli import main as m; m.main = lambda given: os.abort(); m.run(['inspect', 'm'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == ExitCode.NOT_AVAILABLE
    assert "SIGABRT" in done.stderr
