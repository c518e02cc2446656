"""Has something else where its declared output should be."""

import os

from evidence import TARGETS, done, say

path = "/forge/outputs/table.csv"
form = TARGETS["form"]
if form == "folder":
    os.mkdir(path)
    open(f"{path}/table.csv", "w").close()
elif form == "link":
    os.symlink("/forge/params.json", path)
elif form == "link to another output":
    open("/forge/outputs/real", "w").close()
    os.symlink("real", path)
elif form == "fifo":
    os.mkfifo(path)
elif form == "too large":
    with open(path, "wb") as file:
        file.truncate(1 << 40)
elif form == "other case":
    open("/forge/outputs/TABLE.CSV", "w").close()
elif form == "trailing space":
    open(path + " ", "w").close()
elif form == "in a folder":
    os.mkdir("/forge/outputs/x")
    open("/forge/outputs/x/table.csv", "w").close()
say(form=form)
done()
