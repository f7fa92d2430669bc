"""What becomes of a read when the server misbehaves: the release of zarr and the fork, side by side.

`cells` lists what is tried, `server` misbehaves, `reader` reads in a process of its own, `runner`
brings these together, `table` writes what came of it. Only public interfaces of zarr are used.
"""
