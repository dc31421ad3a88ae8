"""Runs the real crit, of the pycriu on the path, over many images in one process.

    python -S crit_all.py LIST

LIST is a JSON file of command lines; the answer is a JSON list of what each printed, and a line on
standard error for whatever crit said there.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from crit.__main__ import main  # type: ignore[import-not-found]

answers = []
for arguments in json.loads(Path(sys.argv[1]).read_text()):
    sys.argv = ["crit", *arguments]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main()
    except BaseException as error:  # noqa: BLE001  # SystemExit, too, is a failure of crit's
        sys.exit(f"crit {' '.join(arguments)}: {type(error).__name__}: {error}")
    answers.append(printed.getvalue())
json.dump(answers, sys.stdout)
