"""Stubs generated from proto/livemigration/criu/pb (see scripts/gen_protos.py); do not edit."""
