"""Changes an input folder that everybody may write on the host: new files, links, removals, exchanged names."""

import os

from evidence import attempt, done, syscall, write

folder = "/forge/inputs/folder"
attempt("new file", write, f"{folder}/harm", b"harm", os.O_CREAT)
attempt("new folder", os.mkdir, f"{folder}/harm.d")
attempt("new link", os.symlink, "/etc/passwd", f"{folder}/harm.l")
attempt("new fifo", os.mkfifo, f"{folder}/harm.p")
attempt("unnamed file", os.open, folder, os.O_TMPFILE | os.O_RDWR)
attempt("write", write, f"{folder}/inner.txt")
attempt("remove", os.unlink, f"{folder}/inner.txt")
attempt("rename", os.rename, f"{folder}/inner.txt", f"{folder}/other.txt")
attempt("move out", os.rename, f"{folder}/inner.txt", "/forge/scratch/inner.txt")
open("/forge/scratch/mine", "w").close()
attempt("move in", os.rename, "/forge/scratch/mine", f"{folder}/inner.txt")
attempt("exchange", syscall, "renameat2", -100, f"{folder}/inner.txt".encode(), -100, f"{folder}/links".encode(), 2)
attempt("chmod", os.chmod, folder, 0o777)
done()
