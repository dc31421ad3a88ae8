"""CRIU's page-server protocol, in both dialects and both directions."""
