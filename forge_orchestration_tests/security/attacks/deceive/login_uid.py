"""Calls itself root in the host's audit records: who is nobody yet, as what a service starts, may say who it is."""

from evidence import attempt, done, say


def become(uid):
    with open("/proc/self/loginuid", "w") as file:
        file.write(str(uid))


for uid in (0, 1000, 4294967295):
    attempt(f"login uid {uid}", become, uid)
with open("/proc/self/loginuid") as file:
    say(login_uid=int(file.read()))
done()
