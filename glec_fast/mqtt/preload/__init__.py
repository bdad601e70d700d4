"""A folder for PYTHONPATH: Python runs the `sitecustomize` in it before a program, also in the processes it starts."""
