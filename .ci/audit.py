"""Known vulnerabilities of the packages that CI installs: python .ci/audit.py [REQUIREMENTS.txt]

Runs pip-audit over the lock file, first against OSV, then against PyPI. A package that a database does not know was not
audited, so it does not count as clean. Exit 0: every package was looked up and none has a known vulnerability; 1: some
have; 3: not all could be looked up, and none of those that could has one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("requirements.txt")
SERVICES = ("osv", "pypi")
CLEAN, FOUND, BAD_USAGE, NOT_AUDITED = 0, 1, 2, 3


def main(arguments: list[str]) -> int:
    lock = Path(arguments[0]) if arguments else LOCK
    if not lock.is_file():
        print(f"audit: {lock}: no such file")
        return BAD_USAGE
    reasons = []
    for service in SERVICES:
        packages, reason = audited(lock, service)
        code, lines = judged(packages)
        if code != NOT_AUDITED:
            print("\n".join([*lines, f"audit: {len(packages)} packages of {lock} looked up at {service}"]))
            return code
        reasons.append(f"{service}: {reason or lines[0]}")
    print(f"audit: not done: {'; '.join(reasons)}")
    return NOT_AUDITED


def audited(lock: Path, service: str) -> tuple[list[dict[str, Any]], str]:
    """What pip-audit says of every package, and why it says nothing."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "-r", str(lock)]
    command += ["-s", service, "-f", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return [], (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]
    return packages, ""


def judged(packages: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Exit code, and a line for every vulnerability or for what was not looked up."""
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    if found:
        return FOUND, found
    skipped = [package for package in packages if "skip_reason" in package]
    if skipped or not packages:
        what = skipped[0]["skip_reason"] if skipped else "no package was looked up"
        return NOT_AUDITED, [f"{len(skipped)} of {len(packages)} packages were not looked up: {what}"]
    return CLEAN, ["no known vulnerability"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
