"""The validation toolkit that the kinds share: errors with upstream's words, names, labels, quantities, selectors, metadata."""
