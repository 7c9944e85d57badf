"""What the app imports."""

WORD = "shop"
