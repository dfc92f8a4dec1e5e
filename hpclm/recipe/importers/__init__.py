"""Other tools' configuration files, read as recipes: one module or folder per tool, chosen by a file's keys."""

from hpclm.recipe.importers.importer import Imported, Importer, KeyFate, KeyNote, importer_for, parser_for

__all__ = ["Imported", "Importer", "KeyFate", "KeyNote", "importer_for", "parser_for"]
