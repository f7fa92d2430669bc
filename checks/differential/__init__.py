"""A differential test: the fork and the release read and write the same random arrays.

`cases` generates random cases as JSON, `runner` runs them with the zarr of its environment, and
`compare` sends them to a runner in each environment and compares the results.
"""
