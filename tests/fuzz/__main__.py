"""``python -m tests.fuzz graphs|files [options]``."""

from __future__ import annotations

import sys

USAGE = """usage: python -m tests.fuzz graphs|files [options]

  graphs   random models through the optimizer
  files    mutated files through everything that reads them

Options: python -m tests.fuzz graphs --help, python -m tests.fuzz files --help"""


def main(argv: list[str]) -> int:
    what, rest = (argv[0], argv[1:]) if argv else ("", [])
    if what == "graphs":
        from tests.fuzz.graphs.command import main as graphs

        return graphs(rest)
    if what == "files":
        from tests.fuzz.files import main as files

        return files(rest)
    print(USAGE, file=sys.stderr)
    return 0 if what in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
