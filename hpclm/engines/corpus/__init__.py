"""Data preparation as a stage: a corpus tokenised on many nodes."""
