"""The programs' edge: command line, errors, signals, output, several processes."""
