"""`python -m terra_cx` is `terra-cx`."""

from __future__ import annotations

import sys

from terra_cx.cli import main

if __name__ == "__main__":
    sys.exit(main())
