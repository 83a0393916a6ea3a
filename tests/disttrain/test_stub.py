"""What type checkers see of the façade is what Python sees."""

import ast
from pathlib import Path

import disttrain as dt


def test_the_stub_holds_every_public_name():
    tree = ast.parse(Path(dt.__file__).with_suffix(".pyi").read_text())
    shown = {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    homes = {name: (module, name) for name, module in dt._HOME.items()}
    modules = {name: ("disttrain", name) for name in dt._MODULES}
    assert shown == homes | dt._ALIASES | modules
