"""The command-line tools: each module parses its options and calls one verb of the public API."""
