"""Golden tests: the model against recordings of real kernels."""
