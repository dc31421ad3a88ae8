"""Faults in the middle of migrations between real nodes, each with the outcome that it must have.

`spec` reads the files in ``scenarios/faults``; `lab` is a place where nodes run (processes on this
machine; another place is a class with the same methods); `link` and `relay` lie between the hosts;
`injection` does what a file says; `trial` runs one case and judges it; `table` shows them all;
`soak` goes on for minutes with faults by chance.
"""
