"""What a student is for: embed pictures, index their vectors, search them in any language, and a page to try it."""
