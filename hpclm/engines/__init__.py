"""Who trains and answers: one folder an engine."""
