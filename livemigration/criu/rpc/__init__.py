"""CRIU's RPC: requests and answers as packets of a unix socket, a service that answers them for a
host, and a client. Knows nothing of how that host is made; see `host.Host`."""
