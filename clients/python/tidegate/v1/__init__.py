"""Generated from proto/tidegate/v1; see generate.py."""
