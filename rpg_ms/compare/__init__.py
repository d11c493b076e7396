"""Comparison of methods: the runs that a table needs, and the table."""
