"""Teachers in Ray actors of their own: they record, or compute ahead of the student. They may come and go."""
