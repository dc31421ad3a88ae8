#!/usr/bin/env python3
"""Generate livemigration/v1 from proto/, or check that it is what proto/ gives.

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
PACKAGE = Path("livemigration/v1")
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(out: Path) -> None:
    """Write the stubs of every proto file below *out*; raises SystemExit with protoc's status."""
    from grpc_tools import _proto as bundled_protos
    from grpc_tools import protoc

    protos = sorted(path.relative_to(PROTO_DIR) for path in (PROTO_DIR / PACKAGE).glob("*.proto"))
    if not protos:
        raise SystemExit(f"no .proto files in {PROTO_DIR / PACKAGE}")
    # protoc finds the mypy plugins on PATH; they are installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    status = protoc.main(
        [
            "protoc",
            f"-I{PROTO_DIR}",
            f"-I{next(iter(bundled_protos.__path__))}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *map(str, protos),
        ]
    )
    if status:
        raise SystemExit(status)


def stubs(root: Path) -> dict[str, bytes]:
    """Return the generated files below *root*: name -> bytes."""
    folder = root / PACKAGE
    return {path.name: path.read_bytes() for glob in GENERATED for path in folder.glob(glob)}


def check() -> int:
    """Compare the committed stubs with fresh ones; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = stubs(Path(folder))
    committed = stubs(ROOT)
    stale = sorted(
        name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name)
    )
    for name in stale:
        print(f"{PACKAGE / name} is not what {PROTO_DIR.name}/ gives: run `make proto`")
    if not stale:
        print(f"{len(fresh)} stub files match {PROTO_DIR.name}/")
    return 1 if stale else 0


def write() -> int:
    """Replace the committed stubs; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = stubs(Path(folder))
    for name in stubs(ROOT).keys() - fresh.keys():
        (ROOT / PACKAGE / name).unlink()
        print(f"removed {PACKAGE / name}")
    for name, data in sorted(fresh.items()):
        (ROOT / PACKAGE / name).write_bytes(data)
    print(f"wrote {len(fresh)} files to {PACKAGE}")
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
