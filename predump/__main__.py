"""``python -m predump``: the same as the ``predump`` command."""

from predump.loading import loading

if __name__ == "__main__":
    with loading():
        from predump.cli import main
    main()
