"""The contract's Python stubs, generated from proto/ when they are first asked for, below a scratch directory.

Only the messages are generated: the service is served by name (see engine.py), so that messages of an engine that
does not exist yet can be sent, too.
"""

import atexit
import importlib
import os
import pathlib
import shutil
import sys
import tempfile

PROTO = pathlib.Path(__file__).resolve().parents[3] / "proto"


# Where a process that the suite starts finds the stubs, so that it need not generate them anew.
STUBS = "CONFORMANCE_STUBS"


def _generate() -> str:
    import grpc_tools
    from grpc_tools import protoc

    target = tempfile.mkdtemp(prefix="tidegate-stubs-")
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    protos = sorted(str(path) for path in PROTO.glob("tidegate/v1/*.proto"))
    if not protos or protoc.main(["protoc", f"-I{PROTO}", f"-I{include}", f"--python_out={target}", *protos]) != 0:
        raise SystemExit(f"no stubs can be generated from {PROTO}")
    # Else they would be a namespace, which an installed Python client, of whatever version, takes precedence over.
    for package in ("tidegate", "tidegate/v1"):
        pathlib.Path(target, package, "__init__.py").touch()
    return target


def _load():
    target = os.environ[STUBS] = os.environ.get(STUBS) or _generate()
    sys.path.insert(0, target)
    return (importlib.import_module(f"tidegate.v1.{name}") for name in ("job_pb2", "worker_service_pb2"))


job, v1 = _load()

OK = v1.REPORT_RESULT_OK
LEASE_LOST = v1.REPORT_RESULT_LEASE_LOST
CANCELLED = v1.REPORT_RESULT_CANCELLED
REJECTED = v1.REPORT_RESULT_REJECTED

# The bodies that end a job and free its slot.
ENDS = frozenset({"complete", "fail", "stopped", "released"})
