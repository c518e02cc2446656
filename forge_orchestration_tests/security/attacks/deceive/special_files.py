"""Leaves what is no file among its outputs: a FIFO on which a reader hangs, sockets, and devices as far as it may make them."""

import os
import socket
import stat

from evidence import attempt, done

os.chdir("/forge/outputs")
attempt("fifo", os.mkfifo, "result.csv")
attempt("socket", socket.socket(socket.AF_UNIX).bind, "socket")
attempt("device 0:0", os.mknod, "whiteout", stat.S_IFCHR | 0o666, os.makedev(0, 0))
attempt("zero", os.mknod, "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
attempt("disk", os.mknod, "disk", stat.S_IFBLK | 0o666, os.makedev(8, 0))
done()
