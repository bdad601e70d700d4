"""The command line: each subcommand is a module or a package.

Must not know of what a program could not use; nothing imports it.
"""
