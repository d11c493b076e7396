"""The sparse network leaves the building."""
