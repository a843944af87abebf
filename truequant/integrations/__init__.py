"""Training frameworks and loggers: a file each, which imports the package that it is for and is imported by nothing here."""
