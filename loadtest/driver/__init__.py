"""Drives k6 and oha against a fleet, does what the scenarios need done to it, and writes the report."""
