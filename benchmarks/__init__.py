"""Timings: scripts, each run by hand; the tests only see that they work."""
