"""Any program, run with hpclm's topology, rendezvous, recovery and collection."""
