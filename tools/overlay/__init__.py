"""Merging `src/zarr/`, which holds only what the fork adds or replaces, into a released zarr.

The modules, in the order in which a merge goes through them: `project` knows the pins and the lock, `upstream`
finds the release, `tree` walks both trees and writes the merged one, `module` merges one module, out of `imports`,
`exports` and `definitions`, and `markdown` one document; `lock` compares what is replaced with what it was written
against. `problems` is what all of them report instead of raising at the first thing that is wrong.
"""
