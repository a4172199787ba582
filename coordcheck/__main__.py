"""``python -m coordcheck``: the command of the same name."""

from coordcheck.cli.check import main

if __name__ == "__main__":
    main()
