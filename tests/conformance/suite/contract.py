"""The contract's messages, made from proto/ when they are first asked for; no file is written.

Only the messages are made: the service is served by name (see engine.py), so that messages of an engine that does not
exist yet can be sent, too.
"""

import base64
import importlib
import os
import pathlib
import subprocess
import sys
import types

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.internal import builder  # what generated code is made with

PROTO = pathlib.Path(__file__).resolve().parents[3] / "proto"

# Where a process that the suite starts finds what the compiler said, so that it need not ask it anew.
CONTRACT = "CONFORMANCE_CONTRACT"


def _compile() -> bytes:
    """The contract as a FileDescriptorSet, each file after those that it imports."""
    from grpc_tools import protoc

    protos = sorted(str(path) for path in PROTO.glob("tidegate/v1/*.proto"))
    compiler = [sys.executable, "-m", protoc.__name__, f"-I{PROTO}", "--include_imports"]
    done = subprocess.run([*compiler, "--descriptor_set_out=/dev/stdout", *protos], stdout=subprocess.PIPE)
    if not protos or done.returncode != 0:
        raise SystemExit(f"{PROTO} cannot be compiled")
    return done.stdout


def _load():
    if CONTRACT not in os.environ:
        os.environ[CONTRACT] = base64.b64encode(_compile()).decode()
    files, modules = descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(os.environ[CONTRACT])), {}
    for file in files.file:
        if file.name.startswith("google/protobuf/"):
            # The library has these, with methods of their own.
            importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
            continue
        descriptor = descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
        module = types.ModuleType(file.name)
        builder.BuildMessageAndEnumDescriptors(descriptor, vars(module))
        builder.BuildTopDescriptorsAndMessages(descriptor, file.name, vars(module))
        modules[file.name] = module
    return (modules[f"tidegate/v1/{name}.proto"] for name in ("job", "worker_service"))


job, v1 = _load()

OK = v1.REPORT_RESULT_OK
LEASE_LOST = v1.REPORT_RESULT_LEASE_LOST
CANCELLED = v1.REPORT_RESULT_CANCELLED
REJECTED = v1.REPORT_RESULT_REJECTED

# The bodies that end a job and free its slot.
ENDS = frozenset({"complete", "fail", "stopped", "released"})
