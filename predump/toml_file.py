"""TOML files that a user names: read, or refused in one line that says what is wrong."""

import tomllib
from pathlib import Path
from typing import Any


def read_toml(path: Path, refused: type[ValueError], what: str = "") -> dict[str, Any]:
    """The tables of the file `path`; raises `refused` if it is none that can be read.

    `what`: the kind of file that belongs there, for the line that says that there is none.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        missing = f"{what} file".strip()
        raise refused(f"{path}: there is no such {missing}") from error
    except IsADirectoryError as error:
        wanted = what or "scenario"
        raise refused(f"{path}: is a directory; name a {wanted} file in it") from error
    except OSError as error:
        raise refused(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise refused(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise refused(f"{path}: is not valid TOML: {error}") from error
