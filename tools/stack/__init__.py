"""Cutting the overlay into pull requests, as `stack.toml` says, and making branches of them.

The modules, in the order in which a cut goes through them: `manifest` reads `stack.toml`, `leaves` takes the
overlay's files apart into what a pull request can name, `ownership` says which of these belong to which,
`restrict` leaves out of a file what belongs to later ones, with the imports that only these need (`uses`),
`earlier` knows what earlier ones have in another form, and `cut` merges what is left into upstream. `check`
says whether the cut is whole and small (`diffstat`), and `alone` looks in each branch for names that only a
later one brings. `repository` knows git, `branches` makes the commits, `verify` tries each of them
(`findings`), and `rebase` compares the overlay with another release.
"""
