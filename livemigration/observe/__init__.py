"""What an operator can watch of a node: logs, metrics, traces. docs/observability.md.

Nothing here may fail, delay or change a migration. Each part is on its own:

* logs - lines for people or as JSON, each with the migration that it belongs to
* metrics - counters and gauges of a node, in Prometheus' terms
* endpoint - where Prometheus fetches them
* tracing - spans of one migration, joined across both hosts
* exporters - where finished spans go
* calls - a span for each call that a destination answers

Telemetry (livemigration.telemetry) is for programs that follow migrations; this is for operators.
"""
