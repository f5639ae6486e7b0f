"""How experiments are run, kept and shown, whatever they measure."""
