"""What targets that compile through TVM share: import, library, artifact, loader."""
