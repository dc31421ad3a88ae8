"""Holding `mm_model` against kernels, and against itself under other settings.

``trace``       recordings of real kernels, and the script language of their operations
``replay``      plays operations on the model
``judge``       a recorded scenario against the model: every difference
``settings``    which model meets a recording, and ``--set key=value``
``descriptors`` page-table entries in words
``check``       whole trace files against the model
``report``      what `predump conform` prints
``operations``  random operations from a seed
``differential`` the same operations on two models: where they first disagree
``shrink``      a sequence made as short as can be
``hunt``        random operations, differential, shrunk: a search
``shortest``    the shortest scenario that shows each hunk
``explain``     a disagreement told, with the page-table entries on the way
``initramfs``, ``guest``  a real kernel in QEMU that executes operations (``probe.c``)
``record``, ``fuzz``      what it shows as a trace; random operations on it and on the model
``session``     operations one by one, with what each changed: `predump mm`
``matrix``      each hunk off against a set of workloads
"""
