"""Which parameters: names, prefixes, patterns, layer names, tied weights, and the anatomy of any model."""
