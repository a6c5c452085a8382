"""What must hold for every input and every order of events, with hypothesis looking for the exception."""
