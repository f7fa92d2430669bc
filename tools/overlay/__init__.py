"""Merging `src/zarr/`, which holds only what the fork adds or replaces, into a released zarr.

The modules, in the order in which a merge goes through them: `project` knows the pins and the lock, `upstream`
finds the release, `tree` walks both trees and writes the merged one, `module` merges one module, whose `pieces`
it takes from both and whose imports `imports` adds, and `markdown` one document; `tidy` lets ruff lay out what
is merged. `lock` compares what is replaced with what it was written against. `problems` has
what all of them report instead of raising at the first thing that is wrong.
"""
