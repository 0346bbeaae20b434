"""What a person sees: progress, tables, trees. Loads no torch."""
