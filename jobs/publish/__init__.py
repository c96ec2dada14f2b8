"""The last look at tonight's lists, and the commit that serves them."""
