"""The SQL database beneath an index. Its transaction is the commit; it alone decides what is visible."""
