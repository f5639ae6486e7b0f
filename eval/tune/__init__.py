"""`fewstep tune`: the best plan for a budget on one network, or the front of all of them."""
