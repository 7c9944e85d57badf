"""Runs an app: one process with an ordered drain, or several under a supervisor. For the command line."""
