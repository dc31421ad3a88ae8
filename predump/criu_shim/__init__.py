"""A `criu` command whose tasks are simulated: it asks the service of `predump criu service`.

Starts in a few hundredths of a second: nothing here imports the model.
"""
