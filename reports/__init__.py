"""Figures and tables drawn from finished runs."""
