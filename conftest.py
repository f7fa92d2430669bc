"""Settings for all tests of this repository."""

from __future__ import annotations

from hypothesis import settings

# The time that an example takes depends on the machine more than on the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
