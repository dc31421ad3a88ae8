"""Drives CRIU as a program with pycriu does: SOCKET PID DIR. Runs with pycriu's own protobuf."""

import os
import sys

import pycriu

socket, pid, base = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def client():
    made = pycriu.criu()
    made.use_sk(socket)
    made.opts.log_level = 4
    return made


client().check()
for number in range(4):
    folder = os.path.join(base, str(number))
    os.mkdir(folder)
    asked = client()
    asked.opts.images_dir_fd = os.open(folder, os.O_DIRECTORY)
    asked.opts.pid = pid
    asked.opts.track_mem = True
    if number:
        asked.opts.parent_img = f"../{number - 1}"
    if number < 3:
        asked.pre_dump()
    else:
        asked.dump()
    print("dumped", number)
again = client()
again.opts.images_dir_fd = os.open(os.path.join(base, "3"), os.O_DIRECTORY)
print("restored", again.restore().pid)
try:
    again.restore()
except pycriu.CRIUExceptionExternal as error:
    print("again", error.errno)
