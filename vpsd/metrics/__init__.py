"""What is measured of servers: samples of now, and the transfer of each month."""
