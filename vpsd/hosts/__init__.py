"""What runs the servers, and how much room it has."""
