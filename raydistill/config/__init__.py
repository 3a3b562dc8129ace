"""The config: a file a section with its own rules, the tree of them, and how it is read. Uses `storage` for paths."""
