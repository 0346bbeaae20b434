"""Experiments: many runs that differ in one thing each, and the figures that say what it did."""
