"""Engines, which train and generate: one folder per engine."""
