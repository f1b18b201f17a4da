"""The plugins. One module each, or a package; they know the pipeline and what is below it, and never each other.

The files lie in `plugins/` at the top of the repository and are imported as `kdns.plugins`.
"""
