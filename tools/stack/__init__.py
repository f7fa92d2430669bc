"""Cutting the overlay into pull requests, as `stack.toml` says, and making branches of them.

The modules, in the order in which a cut goes through them: `manifest` reads `stack.toml`, `ownership`
takes the overlay's files apart and says what belongs to which pull request, and `cut` merges what a branch has into upstream. `repository` knows git, and `branches` makes the commits. `check`
looks at the branches, `verify` tries each of them, and `rebase` compares the overlay with another release.
"""
