"""Floor 6: what watches over a run: signs that nothing can be learnt."""
