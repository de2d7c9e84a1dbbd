"""A verb in a process of its own, so that a library that ends the process still ends in a message.

Models from strangers reach native code: the optimizers and kernels of ONNX Runtime, the parser of TensorRT, protobuf. Now and
then one of them aborts or reads where it must not, and the system ends a process that takes too much memory. Nothing can be
caught there, but the parent sees it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from msconv_deploy.cli.terminal import say
from msconv_deploy.errors import ExitCode

_CRASHES = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}
)
_FORWARDED = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
_BY_THE_SYSTEM = 128  # SI_KERNEL: a terminal sends its signals to parent and child alike
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def guarded(work: Callable[[], int], arguments: Sequence[str]) -> int:
    """Do the work in a child process; returns its exit code, or says what ended it.

    A signal that stops the parent is passed on, and if the child ends by it, so does the parent.

    Args:
        work: returns an exit code. It has the standard streams; no threads may run when it starts.
        arguments: of the command line, for the message.
    """
    if not hasattr(signal, "sigwaitinfo") or not hasattr(os, "fork"):
        return work()
    watched = {*_FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return work()
    status = _wait(child, watched)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.WIFEXITED(status):
        # The child was this program: it has written everything, also what only the exit of a program writes.
        return os.WEXITSTATUS(status)
    number = signal.Signals(os.WTERMSIG(status))
    if number not in _CRASHES and number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(parent, number)
    say(f"msconv {' '.join(arguments)}: {_ended_by(number)}. Outputs appear complete or not at all", err=True)
    return int(ExitCode.NOT_AVAILABLE)


def _wait(child: int, watched: set[signal.Signals]) -> int:
    """Status of the child when it is done; signals to the parent alone are passed on meanwhile."""
    while True:
        info = signal.sigwaitinfo(watched)
        if info.si_signo != signal.SIGCHLD:
            if info.si_code != _BY_THE_SYSTEM:
                os.kill(child, info.si_signo)
            continue
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status


def _die_with(parent: int) -> None:
    """A parent that is killed takes its child along."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _ended_by(number: signal.Signals) -> str:
    if number == signal.SIGKILL:
        return "the process was killed (SIGKILL), by the system if memory ran out: give it more, or smaller inputs"
    return (
        f"native code ended the process ({number.name}); what it said, if anything, stands above. On a valid model that is a "
        "fault of a library, mostly of ONNX Runtime: try another version of it (`msconv doctor` shows what is installed)"
    )
