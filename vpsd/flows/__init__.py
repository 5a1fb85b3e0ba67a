"""How operations are carried out: the steps of every command, above the rooms that they bring together."""
