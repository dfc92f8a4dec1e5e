"""A rank's life whatever the engine: entry, rendezvous, heartbeat, orderly stop, report."""
