"""The source host: a task under its workload, the pre-dump loop, and the service around them."""
