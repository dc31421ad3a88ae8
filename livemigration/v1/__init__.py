"""Stubs generated from proto/livemigration/v1 (see scripts/gen_protos.py); do not edit."""
