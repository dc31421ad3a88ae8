"""The protobuf messages of CRIU images, with the fields that are needed here.

CRIU's images are protobuf (proto2) messages. The table below names the fields that this package
reads, by number and type, and the messages are made from it when the module is imported; protobuf
skips the other fields. Every field is optional, since images are input that may be damaged: what
must be there is checked where it is used. Strings are read as bytes: a program's name need not be
UTF-8.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "predump.criu"
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES: Final = {
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "sint64": _Field.TYPE_SINT64,
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
}

# message -> field -> (number, type); "*type" repeats; other types are messages of this table.
_MESSAGES: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "InventoryEntry": {"img_version": (1, "uint32")},
    "PstreeEntry": {"pid": (1, "uint32"), "ppid": (2, "uint32")},
    "TaskCore": {"task_state": (1, "uint32"), "comm": (6, "bytes")},
    "CoreEntry": {"mtype": (1, "uint32"), "tc": (3, "TaskCore")},
    "VmaEntry": {
        "start": (1, "uint64"),
        "end": (2, "uint64"),
        "pgoff": (3, "uint64"),  # bytes
        "shmid": (4, "uint64"),  # of a file mapping: the file's id
        "prot": (5, "uint32"),
        "flags": (6, "uint32"),
        "status": (7, "uint32"),
        "fd": (8, "sint64"),
    },
    "MmEntry": {
        "start_brk": (6, "uint64"),
        "brk": (7, "uint64"),
        "auxv": (13, "*uint64"),
        "vmas": (14, "*VmaEntry"),
    },
    "PagemapHead": {"pages_id": (1, "uint32")},
    "PagemapEntry": {
        "vaddr": (1, "uint64"),
        "nr_pages_32": (2, "uint32"),  # up to 4.1.1; later versions write 0 here
        "in_parent": (3, "bool"),  # before there were flags
        "flags": (4, "uint32"),
        "nr_pages": (5, "uint64"),  # from 4.2
    },
    "RegFileEntry": {"id": (1, "uint32"), "name": (6, "bytes")},
    "MemfdFileEntry": {"inode_id": (5, "uint32")},
    "FileEntry": {
        "type": (1, "uint32"),
        "id": (2, "uint32"),
        "reg": (3, "RegFileEntry"),
        "memfd": (20, "MemfdFileEntry"),
    },
    "MemfdInodeEntry": {"size": (4, "uint64"), "shmid": (5, "uint32"), "inode_id": (7, "uint32")},
}

MessageClass: TypeAlias = Any
"""A class made by protobuf at run time; its instances have the table's fields as attributes."""


def _make_classes() -> dict[str, MessageClass]:
    file = descriptor_pb2.FileDescriptorProto(
        name="predump/criu/images.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            label = _Field.LABEL_REPEATED if kind.startswith("*") else _Field.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            field = message.field.add(name=field_name, number=number, label=label)
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type = _Field.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES: Final = _make_classes()

InventoryEntry: MessageClass = _CLASSES["InventoryEntry"]
PstreeEntry: MessageClass = _CLASSES["PstreeEntry"]
CoreEntry: MessageClass = _CLASSES["CoreEntry"]
MmEntry: MessageClass = _CLASSES["MmEntry"]
PagemapHead: MessageClass = _CLASSES["PagemapHead"]
PagemapEntry: MessageClass = _CLASSES["PagemapEntry"]
FileEntry: MessageClass = _CLASSES["FileEntry"]
MemfdInodeEntry: MessageClass = _CLASSES["MemfdInodeEntry"]
