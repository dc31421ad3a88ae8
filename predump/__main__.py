"""``python -m predump``: the same as the ``predump`` command."""

from predump.cli import main

if __name__ == "__main__":
    main()
