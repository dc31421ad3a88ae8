"""What a migration costs on this host, measured: the kernel's work, and this implementation's.

* `sample` - repeats of one measurement: median and spread
* `memory` - faults, scans, write-protection, copies and digests, in this process
* `handshake` - stopping and starting the task's thread, in this process
* `loopback` - a bare TCP connection between two processes
* `nodes` - migrations of an idle task between two real nodes, and what follows from them
* `machine` - all of it as a machine file (`livemigration.machine_file`)

Where only this process' own work is measured, its CPU time is taken: others that use the machine do
not count. What needs two processes is real time, and the machine should have little else to do.
"""
