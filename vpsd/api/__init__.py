"""The REST API: `http` is what any dialect stands on, `vps_org` a dialect, and `app` puts them together."""
