"""What a recipe means: topology, findings, stages. Standard library only."""
