"""Any program, under our topology, rendezvous, recovery and collection."""
