"""The REST API: a thin skin, one file per noun."""
