"""Prints, as JSON, the fields of all messages of the pycriu on the path: name -> [number, type,
repeated]."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pycriu.images  # type: ignore[import-not-found]

folder = Path(pycriu.images.__file__).parent
found = {}
for file in sorted(folder.glob("*_pb2.py")):
    module = importlib.import_module(f"pycriu.images.{file.stem}")
    for name, message in module.DESCRIPTOR.message_types_by_name.items():
        found[name] = {
            field.name: [field.number, field.type, field.label == field.LABEL_REPEATED]
            for field in message.fields
        }
json.dump(found, sys.stdout)
