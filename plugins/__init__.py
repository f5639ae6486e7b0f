"""Plug-ins that other engines find by the entry points of this package, one module for each."""
