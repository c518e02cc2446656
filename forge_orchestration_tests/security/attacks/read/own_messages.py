"""Reads back from the message channel, to which an analysis may only add: what one of its helpers reported could be taken away."""

import os

from evidence import attempt, done, say

attempt("open for reading", os.open, "/forge/messages", os.O_RDONLY | os.O_NONBLOCK)
attempt("make it readable", os.chmod, "/forge/messages", 0o600)
reader = attempt("open again", os.open, "/forge/messages", os.O_RDONLY | os.O_NONBLOCK)
say(readable=reader is not None)
done()
