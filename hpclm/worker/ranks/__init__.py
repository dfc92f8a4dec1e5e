"""The part of a rank's life that needs torch."""
