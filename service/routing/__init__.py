"""Who hears what, and when: Alertmanager's route tree, inhibition, silences, time intervals and grouping. Deciding only, no I/O."""
