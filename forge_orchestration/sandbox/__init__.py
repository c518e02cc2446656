"""The sandbox around one local execution: namespaces, cgroup, system call filter, workspace, and who watches them."""
