"""A differential test: the same arrays read and written by the fork and by the release.

`cases` draws what to do as JSON, `runner` does it with the zarr of its environment, and `compare`
feeds one runner in each environment and compares what they report.
"""
