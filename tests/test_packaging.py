"""The package is whole: the explicit list of packages, the links, and the names that must not be installed."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAPPED = {
    "disttrain.collectives": "collectives",
    "disttrain.kernels": "kernels",
    "disttrain.launcher": "launcher",
}


@pytest.fixture(scope="module")
def config():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_below(folder, name):
    for init in sorted(folder.rglob("__init__.py")):
        parts = init.parent.relative_to(folder).parts
        if init.parent.resolve() == ROOT / Path(*init.parent.relative_to(ROOT).parts):  # not through a link
            yield ".".join((name, *parts))


def test_the_list_of_packages_is_complete(config):
    found = set(packages_below(ROOT / "disttrain", "disttrain"))
    for name, folder in MAPPED.items():
        found |= set(packages_below(ROOT / folder, name))

    assert set(config["tool"]["setuptools"]["packages"]) == found
    assert config["tool"]["setuptools"]["package-dir"] == MAPPED


@pytest.mark.parametrize("folder", MAPPED.values())
def test_the_links_are_relative_and_lead_to_the_folders(folder):
    link = ROOT / "disttrain" / folder

    assert link.is_symlink()
    assert str(link.readlink()) == f"../{folder}"


def test_tests_hold_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))  # pytest would import tests/disttrain as disttrain


def test_pytorch_is_a_peer_only(config):
    extras = config["project"]["optional-dependencies"].values()
    wanted = [*config["project"]["dependencies"], *(name for extra in extras for name in extra)]

    assert not [w for w in wanted if w.startswith("torch")]
