"""What a network is: its noise schedule, what it predicts, how it is called and what it costs."""
