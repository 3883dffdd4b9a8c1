"""Evaluation: a domain's figures over a set of objects, the report of a run, and the published results."""
