"""Messages of identity providers that end sessions."""
