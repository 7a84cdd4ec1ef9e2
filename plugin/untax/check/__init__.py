"""``untax check``: what can be known of a run folder before anything runs."""
