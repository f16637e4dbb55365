"""Floor 0: what stands between the products, in C: chosen, compiled and loaded here."""
