"""The scripted engine, its cases, and what runs them; see ../README.md."""
