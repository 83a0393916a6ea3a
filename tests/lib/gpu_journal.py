"""A pytest plugin for `scripts/gpu_check`: each test is written down when it begins and when it ends.

``-p gpu_journal --journal FILE`` appends a line of JSON for each, so that a run that crashes or hangs loses nothing and
names the test that it was in; a run with the same file goes on after that test. A test after which the GPU is lost to
the process ends the run early. ``--gpu-stand-in`` lets the tests of kernels that want a GPU run on the CPU's shim.
"""

import json
import re
from pathlib import Path

import pytest

_LOST = re.compile(
    r"cudaError(IllegalAddress|LaunchFailure|MisalignedAddress|LaunchTimeout|IllegalInstruction|Assert|HardwareStackError)"
    r"|CUDA_ERROR_(ILLEGAL_ADDRESS|LAUNCH_FAILED|MISALIGNED_ADDRESS|LAUNCH_TIMEOUT|ILLEGAL_INSTRUCTION|ASSERT)"
)
"""Errors after which all calls of CUDA in a process fail."""
_LINES = 6


def pytest_addoption(parser):
    parser.addoption("--journal", type=Path, help="append to this file what each test did")
    parser.addoption("--gpu-stand-in", action="store_true", help="what wants a GPU runs on the shim")


def pytest_configure(config):
    if config.getoption("--journal"):
        config.pluginmanager.register(_Journal(config.getoption("--journal")))


def read(path):
    """Return for each test of a journal what is known of it: no outcome if it has begun and not ended."""
    tests = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        tests.setdefault(entry["test"], {}).update(entry)
    return tests


class _Journal:
    def __init__(self, path):
        self._path = path
        self._seen = {test for test, entry in read(path).items() if "begun" in entry}
        self._found = {}

    def _write(self, test, **entry):
        with open(self._path, "a") as file:
            file.write(json.dumps({"test": test, **entry}) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        done = [item for item in items if item.nodeid in self._seen]
        items[:] = [item for item in items if item.nodeid not in self._seen]
        config.hook.pytest_deselected(items=done)
        for item in items:
            self._write(item.nodeid)

    def pytest_collectreport(self, report):
        if not report.passed:
            self._write(
                report.nodeid or "collection", begun=True, outcome=report.outcome, why=_first_lines(report)
            )

    def pytest_runtest_logstart(self, nodeid):
        self._found = {"outcome": "passed", "seconds": 0.0}
        self._write(nodeid, begun=True)

    def pytest_runtest_logreport(self, report):
        found = self._found
        found["seconds"] += report.duration
        if not report.passed and found["outcome"] != "failed":
            found |= {"outcome": report.outcome, "why": _first_lines(report)}
            found["lost"] = bool(_LOST.search(report.longreprtext))
        if report.when == "teardown":
            self._write(report.nodeid, **found, **dict(report.user_properties))

    def pytest_runtest_logfinish(self, nodeid):
        if self._found.get("lost"):
            pytest.exit(f"the GPU is lost to this process after {nodeid}", returncode=1)


def _first_lines(report):
    """Return why a test failed or was skipped: the error itself, not the way to it."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else report.longreprtext
    return "\n".join(text.strip().splitlines()[:_LINES])
