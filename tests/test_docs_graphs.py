"""The examples of docs/graphs.md run, one after the other."""

import re
from pathlib import Path

import disttrain as dt

PAGE = Path(__file__).resolve().parents[1] / "docs/graphs.md"


def test_the_examples_run(capsys, monkeypatch, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    space = {"__name__": "example"}
    dt.manual_seed(0)

    exec(compile(script.read_text(), str(script), "exec"), space)

    loss, refusal, *source = capsys.readouterr().out.split("\n", 2)
    assert 0 < float(loss) < 10
    assert "the truth of a tensor, which `if` asks for" in refusal
    assert "if loss > 10:" in source[0]
    assert "linear(v0, " in source[0]
    assert space["step"].is_captured
