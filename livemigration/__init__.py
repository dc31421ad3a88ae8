"""What both hosts of a migration share: the wire format, digests, policies, clocks, the link,
costs, the ownership state machine, workloads and telemetry. It knows the memory model, not the
hosts."""
