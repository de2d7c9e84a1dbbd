"""Python imports this at its start where its folder is on PYTHONPATH: an attempt to reach another machine is written down
and refused. An audit hook sees it in any library, however it was imported, and in child processes, which inherit the path.
"""

import ipaddress
import os
import sys

LOG = os.environ.get("NETWORK_WATCH_LOG")


def _is_local(host):
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False


def _watch(event, arguments):
    if event == "socket.getaddrinfo" or event in ("socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.bind", "socket.sendto"):
        address = arguments[1]
        if not isinstance(address, tuple):
            return  # a Unix socket
        host = address[0]
        if event == "socket.bind" and not host:
            host = "0.0.0.0"
    else:
        return
    if not _is_local(host):
        with open(LOG, "a") as log:  # noqa: PTH123  # before anything else is imported
            log.write(f"{event} {arguments!r} by {sys.argv}\n")
        raise ConnectionRefusedError(f"no network in this test: {event} {host}")


if LOG:
    sys.addaudithook(_watch)
