"""The paper's experiments again, and the demonstration: nothing below imports this room."""
