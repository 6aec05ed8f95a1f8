"""Runs k6 and oha against a fleet, breaks the fleet as the scenarios need, and writes the report."""
