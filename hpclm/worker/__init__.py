"""The life of a rank, for every engine: entry, rendezvous, heartbeat, graceful stop, report."""
