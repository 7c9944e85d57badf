"""Items: stored, listed, changed without lost updates, and followed live: the example of a resource."""
