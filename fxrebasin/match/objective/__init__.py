"""The objective of a match: pieces of two states, and what elements of groups have in common in them."""
