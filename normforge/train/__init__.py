"""Networks, data and the loop that trains them; it knows nothing of the search."""
