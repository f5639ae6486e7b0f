"""Training of the embedded networks: recipes as data, and one loop that runs any of them."""
