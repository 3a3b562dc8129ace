"""What a teacher knows of each row: recorded once, read back, or computed beside the student."""
