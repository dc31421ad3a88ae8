"""The destination host: receives pages, rebuilds the memory, proves it equal and takes the task
over.
"""
