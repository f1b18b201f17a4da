"""Master files (RFC 1035, section 5): text to records and back, and how a large one is read beside the loop."""
