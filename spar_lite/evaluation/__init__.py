"""What scores and counts: one file a benchmark in ``tasks``, and what they share."""
