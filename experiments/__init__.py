"""The programs: read a config, call the library, write a workdir."""
