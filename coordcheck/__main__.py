"""``coordcheck`` and ``python -m coordcheck``: help and version at once, the rest by :mod:`coordcheck.cli.check`."""

import sys


def main() -> None:
    """The command; Hydra is imported where it has something to do."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        from coordcheck.cli.manual import manual

        print(manual())
    elif sys.argv[1:] == ["--version"]:
        from coordcheck import __version__

        print(f"coordcheck {__version__}")
    else:
        from coordcheck.cli import check

        check.main()


if __name__ == "__main__":
    main()
