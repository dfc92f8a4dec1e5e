"""Other tools' configuration files, read as recipes."""
