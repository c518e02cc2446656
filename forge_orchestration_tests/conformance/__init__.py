"""Every executor that ships passes the suite for authors of executors."""
