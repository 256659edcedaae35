"""Which training fits into a budget of seconds, by a study's rows and steps timed here."""
