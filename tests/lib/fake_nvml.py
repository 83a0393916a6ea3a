"""The NVIDIA driver's library for machines without a GPU: ``fake_nvml.cpp``, compiled as ``libnvidia-ml.so.1``."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".cpp")


def build(folder: Path) -> dict[str, str]:
    """Compile it into ``folder``; return the variables with which a process finds it."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True, timeout=60)
    return {"LD_LIBRARY_PATH": str(folder)}
