"""The Python of a page: reads snippets as lines of JSON, runs them in one namespace, and answers with what they printed."""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import sys
import traceback
from typing import Any


def main() -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    answers = sys.stdout
    for line in sys.stdin:
        request = json.loads(line)
        printed, failed = io.StringIO(), ""
        name = f"<{request['where']}>"
        linecache.cache[name] = (len(request["code"]), None, request["code"].splitlines(True), name)
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(request["code"], name, "exec"), namespace)
            except BaseException:
                failed = traceback.format_exc()
        print(
            "=== snippet done " + json.dumps({"stdout": printed.getvalue(), "failed": failed}), file=answers, flush=True
        )


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file
    main()
