"""Measures this fork beside the release that it is made from."""

import sys

# These programs start under whatever `python3` is, before there is an environment of their own.
if sys.version_info < (3, 12):  # noqa: UP036
    sys.exit(f"Python 3.12 or later is needed: {sys.executable} is {sys.version.split()[0]}")
