#!/usr/bin/env python3
"""Generate livemigration/v1 and livemigration/criu/pb from proto/, or check that they are current.

    python scripts/gen_protos.py            # write the stubs
    python scripts/gen_protos.py --check    # exit 1, naming the files, if they differ

Needs grpcio-tools and mypy-protobuf, at the versions of requirements-dev.lock: the check compares
text, and other versions write other text.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO_DIR = ROOT / "proto"
SERVICES = Path("livemigration/v1")
"""The nodes' own contract: messages and services."""
MESSAGES = Path("livemigration/criu/pb")
"""What CRIU writes and sends: messages alone."""
PACKAGES = (SERVICES, MESSAGES)
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Write the stubs of every proto file below *out*; raises SystemExit with protoc's status."""
    from grpc_tools import _proto as bundled_protos
    from grpc_tools import protoc

    # protoc finds the mypy plugins on PATH; they are installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for package in PACKAGES:
        protos = sorted(
            path.relative_to(PROTO_DIR) for path in (PROTO_DIR / package).glob("*.proto")
        )
        if not protos:
            raise SystemExit(f"no .proto files in {PROTO_DIR / package}")
        plugins = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
        if package == SERVICES:
            plugins += [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
        includes = [f"-I{PROTO_DIR}", f"-I{next(iter(bundled_protos.__path__))}"]
        status = protoc.main(["protoc", *includes, *plugins, *map(str, protos)])
        if status:
            raise SystemExit(status)


def stubs(root: Path) -> dict[Path, bytes]:
    """Return the generated files below *root*: path from there -> bytes."""
    files = [
        path for package in PACKAGES for glob in GENERATED for path in (root / package).glob(glob)
    ]
    return {path.relative_to(root): path.read_bytes() for path in files}


def check() -> int:
    """Compare the committed stubs with fresh ones; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = stubs(Path(folder))
    committed = stubs(ROOT)
    stale = sorted(
        path for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path)
    )
    for path in stale:
        print(f"{path} is not what {PROTO_DIR.name}/ gives: run `make proto`")
    if not stale:
        print(f"{len(fresh)} stub files match {PROTO_DIR.name}/")
    return 1 if stale else 0


def write() -> int:
    """Replace the committed stubs; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = stubs(Path(folder))
    for path in stubs(ROOT).keys() - fresh.keys():
        (ROOT / path).unlink()
        print(f"removed {path}")
    for path, data in sorted(fresh.items()):
        (ROOT / path).write_bytes(data)
    print(f"wrote {len(fresh)} files to {' and '.join(map(str, PACKAGES))}")
    return 0


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    return check() if parser.parse_args().check else write()


if __name__ == "__main__":
    sys.exit(main())
