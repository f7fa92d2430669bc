"""Run `python -m tools.overlay`."""

import sys

from tools.overlay.cli import main

sys.exit(main())
