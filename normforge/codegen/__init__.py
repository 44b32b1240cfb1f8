"""From a derivative graph to source: orders, factored sums, plans, and the targets that emit them."""
