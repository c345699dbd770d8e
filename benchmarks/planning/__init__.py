"""Planning measured: the same start-goal pairs and seeds for every method, judged by checks independent of planners."""
