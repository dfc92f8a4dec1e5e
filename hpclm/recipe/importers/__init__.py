"""Other tools' configuration files, read as recipes: one module or folder a tool, found by what a file holds."""

from hpclm.recipe.importers.importer import Imported, Importer, KeyFate, KeyNote, importer_for

__all__ = ["Imported", "Importer", "KeyFate", "KeyNote", "importer_for"]
