"""The local executor: a supervisor on this machine that outlives the shell."""
