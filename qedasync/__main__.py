"""``python -m qedasync``: the command line."""

from qedasync.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
