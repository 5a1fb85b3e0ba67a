"""What goes over the wire: shapes and names are those of the pages of VPS.org, and what vpsd adds."""
