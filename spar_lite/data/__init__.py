"""Where prompts come from: composed ones, files, the Hub; evolved and decontaminated."""
