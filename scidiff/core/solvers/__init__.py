"""Solvers: methods that turn a grid into plans of floats, and drivers that hand the stages to the loop."""
