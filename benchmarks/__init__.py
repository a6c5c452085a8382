"""What things cost, beside others. ``make bench`` runs it all; each file says what it measures and how to run it alone."""
