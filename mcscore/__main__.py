"""Run ``python -m mcscore``."""

from mcscore.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
