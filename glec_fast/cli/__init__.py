"""The command line: each subcommand is a module or a package.

Uses only what a program could use; nothing imports it.
"""
