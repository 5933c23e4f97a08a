"""Installs a release of torch without the several GB of CUDA packages that it asks for.

`python -m tests.torch_without_cuda 2.4.1`, in the environment that is to get it, on Linux. Many
releases are on PyPI for CUDA alone, and can't be imported without its libraries. Small ones are
compiled in their place, whose functions say that there is no device. Needs `gcc` and binutils.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# The requirements of torch that are omitted.
OF_CUDA = re.compile(r"Requires-Dist: (nvidia-|cuda-|triton)")
# Libraries that every system has.
OF_THE_SYSTEM = re.compile(r"ld-linux|lib(c|dl|gcc_s|m|pthread|rt|stdc\+\+)\.so")
# Functions of CUDA, by their names or by versions that are called like libraries.
FUNCTIONS = re.compile(r"(__)?(cu|nccl|nv)|[^@]*@lib")

NO_DEVICE = 100  # cudaErrorNoDevice
# Functions that return something else.
SPECIAL = {
    "cudaGetDeviceCount": f"int cudaGetDeviceCount(int *n) {{ *n = 0; return {NO_DEVICE}; }}",
    "cudaGetErrorName": 'const char *cudaGetErrorName(int error) { return "no CUDA"; }',
    "cudaGetErrorString": 'const char *cudaGetErrorString(int error) { return "no CUDA"; }',
    # Asked for before anything has been called.
    "cudaGetLastError": "int cudaGetLastError(void) { return 0; }",
    "cudaPeekAtLastError": "int cudaPeekAtLastError(void) { return 0; }",
    # Called for the kernels of each library when it is loaded.
    "__cudaRegisterFatBinary": "static void *all[1]; "
    "void **__cudaRegisterFatBinary(void *binary) { return all; }",
}


def install(version: str) -> None:
    """Install a release of torch, and libraries in place of those of CUDA."""
    pip_install("--no-deps", f"torch=={version}")
    folder = Path(sysconfig.get_path("platlib"))
    leave_out_cuda(next(folder.glob("torch-*.dist-info")) / "METADATA")
    importlib.invalidate_caches()
    needs = importlib.metadata.requires("torch") or []
    pip_install(*(need for need in needs if "extra ==" not in need))
    replace_missing(folder / "torch" / "lib")


def pip_install(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


def leave_out_cuda(metadata: Path) -> None:
    """Remove CUDA from torch's requirements, because pip would install it later."""
    lines = metadata.read_text(encoding="utf-8").splitlines(keepends=True)
    metadata.write_text(
        "".join(line for line in lines if not OF_CUDA.match(line)), encoding="utf-8"
    )


def replace_missing(folder: Path) -> None:
    """Compile what torch's libraries need and do not find, in the folder where they look for it."""
    files = [file for file in folder.glob("*.so*") if not file.is_symlink()]
    needed = {name for file in files for name in needed_by(file)}
    missing = [
        name for name in needed if not ((folder / name).exists() or OF_THE_SYSTEM.match(name))
    ]
    if not missing:
        return
    defined, wanted = set[str](), set[str]()
    for file in files:
        for kind, symbol in symbols(file):
            if kind != "U":
                defined.add(symbol.partition("@")[0])
            elif FUNCTIONS.match(symbol):
                wanted.add(symbol.partition("@")[0])
    functions = [
        SPECIAL.get(name, f"long {name}(void) {{ return {NO_DEVICE}; }}")
        for name in sorted(wanted - defined)
    ]
    # All in one library, which the others ask for. The loader wants the right version of a function
    # in the library that it is said to come from, and takes any version from another one.
    compile_library(folder / "libno_cuda.so", "\n".join(functions))
    for name in missing:
        compile_library(folder / name, "", "-Wl,--no-as-needed", "-L.", "-l:libno_cuda.so")


def needed_by(file: Path) -> list[str]:
    """Return the names of the libraries that a library is linked with."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "--dynamic", "--wide", file))


def symbols(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the symbols of a library as NAME@VERSION, each after its kind, U if undefined."""
    for line in output_of("nm", "--dynamic", "--with-symbol-versions", file).splitlines():
        *_, kind, symbol = line.split()
        yield kind, symbol


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compile_library(path: Path, source: str, *options: str) -> None:
    command = ["gcc", "-w", "-fno-builtin", "-shared", "-fPIC", "-x", "c", "-", "-x", "none"]
    command += [f"-Wl,-soname,{path.name}", "-Wl,-rpath,$ORIGIN", "-o", path.name, *options]
    subprocess.run(command, check=True, cwd=path.parent, input=source, text=True)


if __name__ == "__main__":
    install(sys.argv[1])
