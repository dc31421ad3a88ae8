"""CRIU's formats, as real CRIU writes and reads them. `images` is where to begin."""
