"""The commands of the command line, one file per group; `cli.py` gives them their names.

torch and diffusers are imported inside the commands, so that help and errors of usage are instant.
"""
