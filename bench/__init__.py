"""One file a claim, each against a named peer in the same run, as a ratio. `python -m bench [NAME ...]` runs them."""
