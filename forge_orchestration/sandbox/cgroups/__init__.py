"""Control groups: one interface over cgroup v1/hybrid and v2."""
