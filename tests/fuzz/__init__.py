"""Fuzzers that run for minutes, outside of `make test`; what they found is in tests beside it."""
