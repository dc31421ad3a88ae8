"""Hosts, brokers and faulty networks for tests: with pytest (`plugin`), or with anything else.

The fixtures are a thin layer: `nodes` starts nodes, `pair` migrates between two, `network` is
one that misbehaves, `broker` runs a Mosquitto, `criu`
a host that speaks CRIU's RPC. Everything listens on free ports of 127.0.0.1
and is gone when its context ends.
"""
