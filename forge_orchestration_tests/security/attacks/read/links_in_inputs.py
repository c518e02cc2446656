"""Follows links that lie in an input folder and lead out of it."""

from evidence import attempt, done, read

for name in ("absolute", "relative", "to_folder", "to_home", "to_proc"):
    attempt(name, read, f"/forge/inputs/folder/links/{name}")
done()
