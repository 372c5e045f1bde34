"""Generates `tidegate/v1` from the contract in `proto/`; run it after a change there and commit what it writes.

    pip install grpcio-tools==1.85.1 && python clients/python/generate.py

The generated code is committed, so that installing needs no compiler and no checkout; a test compares it with what this
script makes of the contract.
"""

import pathlib
import sys

import grpc_tools
from grpc_tools import protoc

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"


def generate(target: pathlib.Path) -> None:
    """Writes `tidegate/v1/*` below `target`."""
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(p) for p in (PROTO / "tidegate" / "v1").glob("*.proto"))
    out = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{include}", *out, *files]) != 0:
        sys.exit("protoc refuses the contract")
    # The messages have no services beside them: an empty module would only be noise.
    (target / "tidegate" / "v1" / "job_pb2_grpc.py").unlink()
    (target / "tidegate" / "v1" / "__init__.py").write_text('"""Generated from proto/tidegate/v1; see generate.py."""\n')


if __name__ == "__main__":
    generate(HERE)
