"""Cutting the overlay into pull requests, as `stack.toml` says, and making branches of them.

The modules, in the order in which a cut goes through them: `manifest` reads `stack.toml`, `leaves` takes the
overlay's files apart into what a pull request can name, `ownership` says which of these belong to which,
`restrict` leaves out of a file what belongs to later ones, and `cut` merges what is left into upstream.
`alone` looks in each branch for names that only a later one brings. `repository` knows git, `branches` makes
the commits, `verify` tries each of them, and `rebase` compares the overlay with another release.
"""
