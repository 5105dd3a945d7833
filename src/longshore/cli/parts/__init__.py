"""Each part of the tree as a command of its own: flags in, the part's `serve` run until SIGTERM."""
