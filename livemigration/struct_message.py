"""google.protobuf.Struct, the form in which specifications of tasks and migrations travel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2


def struct_message(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """What a specification's `to_struct` gives, as a message. ValueError for what JSON has not."""
    message = struct_pb2.Struct()
    message.update(dict(values))
    return message
