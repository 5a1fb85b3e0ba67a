"""What runs the servers, and how much of it is still free."""
