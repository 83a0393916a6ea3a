"""NCCL through ctypes: as its header has it, and calls that are in progress are waited for, or given up."""

import ctypes
import re
import shutil
import subprocess
import tempfile
import threading

import fake_cupy
import numpy as np
import pytest

from disttrain.collectives import nccl_library
from disttrain.collectives.nccl_library import FUNCTIONS, Communicator, Config, NcclError, UniqueId
from disttrain.kernels.libraries import LibraryMissing, wheel_folders

_C_TYPES = {
    "const void*": ctypes.c_void_p, "void*": ctypes.c_void_p, "size_t": ctypes.c_size_t, "int": ctypes.c_int,
    "int*": ctypes.c_void_p, "ncclDataType_t": ctypes.c_int, "ncclRedOp_t": ctypes.c_int, "ncclComm_t": ctypes.c_void_p,
    "ncclComm_t*": ctypes.c_void_p, "cudaStream_t": ctypes.c_void_p, "ncclUniqueId": UniqueId,
    "ncclUniqueId*": ctypes.c_void_p, "ncclConfig_t*": ctypes.c_void_p, "ncclResult_t*": ctypes.c_void_p,
}  # fmt: skip


@pytest.fixture
def library():
    try:
        return nccl_library.load_library()
    except LibraryMissing as error:
        pytest.skip(f"needs NCCL: {error}")


@pytest.fixture
def header():
    for folder in wheel_folders():
        file = folder.parent / "include" / "nccl.h"
        if file.exists():
            return file
    return pytest.skip("needs NCCL's header, which its wheel has")


@pytest.fixture
def connected(cupy):
    """The stand-in's communicator of one process."""
    comm = Communicator(1, nccl_library.unique_id(), 0, lambda: False)
    yield comm
    comm.destroy()


def test_functions_are_declared_as_in_the_header(header):
    text = header.read_text()
    for name, arguments in FUNCTIONS.items():
        declared = re.search(rf"ncclResult_t +{name}\(([^)]*)\);", text)
        assert declared, name
        words = [" ".join(a.split()) for a in declared[1].split(",") if a.strip()]
        types = [re.sub(r" ?\w+$", "", word.replace(" *", "* ")) for word in words]
        assert [_C_TYPES[t.strip()] for t in types] == list(arguments), name


def test_numbers_and_the_configuration_are_those_of_the_header(header, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    fields = [name for name, *_ in Config._fields_]
    lines = [f'printf("%zu ", offsetof(ncclConfig_t, {name}));' for name in fields]
    lines.append("ncclConfig_t config = NCCL_CONFIG_INITIALIZER;")
    lines.append('printf("%u %d %zu ", config.magic, config.splitShare, sizeof(ncclUniqueId));')
    names = {"uint8": "Uint8", "uint32": "Uint32", "uint64": "Uint64"}
    enums = [f"nccl{names.get(name, name.capitalize())}" for name in nccl_library.TYPES]
    enums += [f"nccl{name.capitalize()}" for name in nccl_library.OPERATIONS]
    lines += [f'printf("%d ", (int){name});' for name in (*enums, "ncclSuccess", "ncclInProgress")]
    (tmp_path / "cuda_runtime.h").write_text(
        "typedef struct CUstream_st* cudaStream_t; typedef struct E* cudaEvent_t;"
    )
    (tmp_path / "cuda_fp16.h").write_text("")
    source = "#include <cstddef>\n#include <cstdio>\n#include <climits>\n" + f'#include "{header}"\n'
    source += "int main() {" + "\n".join(lines) + "}"
    program = tmp_path / "asks"
    subprocess.run(
        ["g++", "-w", f"-I{tmp_path}", "-xc++", "-", "-o", str(program)],
        input=source,
        text=True,
        check=True,
        timeout=60,
    )
    found = list(
        map(int, subprocess.run([program], capture_output=True, check=True, timeout=60).stdout.split())
    )

    config = Config.without_blocking()
    assert found == [
        *(getattr(Config, name).offset for name in fields),
        *(config.magic, config.splitShare, ctypes.sizeof(UniqueId)),
        *(*nccl_library.TYPES.values(), *nccl_library.OPERATIONS.values()),
        *(nccl_library.SUCCESS, nccl_library.IN_PROGRESS),
    ]


def test_the_library_answers(library):
    assert nccl_library.version() >= 21800
    assert len({nccl_library.unique_id() for _ in range(3)}) == 3


def test_calls_in_progress_are_waited_for(connected, monkeypatch):
    stream, x = fake_cupy.get_current_stream(), fake_cupy.asarray(np.arange(5, dtype=np.float32))
    asked, state = [], fake_cupy.Library.ncclCommGetAsyncError

    def counted(self, comm, out):
        asked.append(comm)
        return state(self, comm, out)

    monkeypatch.setattr(fake_cupy.Library, "ncclCommGetAsyncError", counted)
    connected.call("ncclAllReduce", x.data.ptr, x.data.ptr, x.size, 7, 0, stream.ptr)

    assert len(asked) == 3
    assert x.get().tolist() == [0, 1, 2, 3, 4]
    connected.check()


def test_processes_that_do_not_come_are_given_up(cupy, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    over, raised = threading.Event(), []

    def connect():
        try:
            Communicator(2, nccl_library.unique_id(), 0, over.is_set)
        except NcclError as error:
            raised.append(str(error))

    thread = threading.Thread(target=connect)
    thread.start()
    over.set()
    thread.join(30)

    assert raised == ["the processes had not all come when the job ended"]


def test_after_an_abort_nothing_is_called(cupy):
    comm = Communicator(1, nccl_library.unique_id(), 0, lambda: False)
    comm.abort()

    with pytest.raises(NcclError, match="the communicator was aborted"):
        comm.call("ncclAllReduce", 0, 0, 0, 7, 0, 0)
    comm.check()  # of which the watchdog wants to hear nothing more


def test_an_error_says_what_nccl_says(connected, monkeypatch):
    monkeypatch.setattr(fake_cupy.Library, "ncclGetLastError", lambda self, comm: b"a cable is loose")
    monkeypatch.setattr(fake_cupy.Library, "ncclGroupStart", lambda self: 3)

    with pytest.raises(NcclError, match="stand-in, status 3: a cable is loose"):
        connected.exchange([("ncclSend", 0, 4, 1, 0)], 0)
