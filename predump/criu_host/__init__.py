"""A simulated host behind CRIU's RPC: tasks of the model that tools pre-dump, dump and restore."""
