"""The model held against this host: the same migrations predicted and measured.

* `cases` - the scenarios: a base with every memory size, dirty rate and bandwidth
* `measure` - each one in the model (virtual clock, a machine file's costs) and on this host (real
  memory, the host's own kernel as the tracker, the wall clock, two nodes over gRPC)
* `compare` - how far rounds, pages and downtime lie apart
* `report` - JSON for programs, Markdown for people
"""
