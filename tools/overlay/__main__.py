"""Run `python -m tools.overlay`."""

from __future__ import annotations

import sys

from tools.overlay.cli import main

sys.exit(main())
