"""Fault injection: reads from a server that misbehaves, with the release of zarr and with the fork.

`cells` lists the combinations, `server` misbehaves, `reader` reads in separate processes, `runner`
runs both, and `table` writes the outcomes. Only public interfaces of zarr are used.
"""
