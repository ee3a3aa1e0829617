"""Views of an image: what may be drawn, what was drawn, and its pixels."""
