"""Models some or all of whose layers keep a state per sequence in place of keys and values."""
