"""Each row of docs/faults.md names a test that there is."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_each_fault_has_its_test():
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| fault |", "| --- |"))]

    assert len(rows) > 35
    for row in rows:
        name = re.search(r"`([a-z_/]+\.py)::(test_\w+)` \|$", row)
        assert name, f"names no test: {row}"
        tests = ast.parse((ROOT / "tests" / name[1]).read_text()).body
        assert name[2] in {t.name for t in tests if isinstance(t, ast.FunctionDef)}, name[0]
