"""NVIDIA's libraries, found in its wheels or by the system's loader."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path


class LibraryMissing(RuntimeError):
    """A library of NVIDIA's cannot be loaded: where it was sought."""


def open_library(stem: str, majors: Sequence[int], beside: str = "") -> ctypes.CDLL:
    """Return a library: that of a wheel of NVIDIA's, the newest first, else what the system's loader finds.

    Args:
        stem: as ``libnvrtc``.
        majors: versions that will do, the preferred first.
        beside: stem of libraries that it opens by their bare names, which lie beside it and are loaded before.

    Raises:
        LibraryMissing: there is none.
    """
    wheels = [str(p) for folder in wheel_folders() for m in majors for p in folder.glob(f"{stem}.so.{m}")]
    tried = []
    for name in (*wheels, *(f"{stem}.so.{m}" for m in majors), f"{stem}.so"):
        try:
            if beside and name in wheels:
                for path in Path(name).parent.glob(f"{beside}.so.*"):
                    ctypes.CDLL(str(path))
            return ctypes.CDLL(name)
        except OSError as error:
            tried.append(str(error))
    raise LibraryMissing("; ".join(tried))


def wheel_folders() -> list[Path]:
    """Return the folders in which wheels of NVIDIA's keep libraries, those of the highest CUDA first."""
    nvidia = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (nvidia.submodule_search_locations or [])] if nvidia is not None else []
    return sorted((folder for root in roots for folder in root.glob("*/lib")), reverse=True)
