"""Floor 4: adapters of low rank (LoRA) on any network of ours or of transformers, and as folders in peft's form."""
