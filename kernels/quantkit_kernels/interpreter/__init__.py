"""The compiled function that runs a program, the table that it walks, and how threads share its work."""
