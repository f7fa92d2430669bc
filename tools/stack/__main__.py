"""Run `python -m tools.stack`."""

from __future__ import annotations

import sys

from tools.stack.cli import main

sys.exit(main())
