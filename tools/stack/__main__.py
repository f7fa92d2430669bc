"""Run `python -m tools.stack`."""

import signal
import sys

from tools.stack.cli import main

for number in (signal.SIGTERM, signal.SIGHUP):  # so that what was started is ended first
    signal.signal(number, lambda number, _: sys.exit(128 + number))
sys.exit(main())
