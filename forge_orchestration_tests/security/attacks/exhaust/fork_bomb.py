"""Makes processes without end, in the form that the test names."""

import os
import threading
import time

from evidence import TARGETS, say


def plain():
    while True:
        try:
            os.fork()
        except OSError:
            pass


def detached():
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            pass


def shell():
    os.execvp("sh", ["sh", "-c", "bomb() { bomb | bomb & }; bomb; wait; while :; do bomb; done"])


def threads():
    def work():
        while True:
            try:
                threading.Thread(target=work, daemon=True).start()
            except RuntimeError:
                time.sleep(0.01)

    work()


def zombies():
    while True:
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError:
            pass


say(form=TARGETS["form"], attempt="begun", error=None)
globals()[TARGETS["form"]]()
