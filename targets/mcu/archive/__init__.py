"""The Model Library Format archive: what is in it, written and read."""
