"""The commands of the command line: plain functions that parse, call the library and print; cli.py names them."""
