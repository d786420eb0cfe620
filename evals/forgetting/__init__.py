"""Learning without forgetting: new facts taught to trained models in several ways, and what each way costs of what was known.

After sparse memory fine-tuning (arXiv 2510.15103): only the value rows that the new facts read often and the training text
rarely are trained, against LoRA and full fine-tuning, compared where each way knows the same share of the new facts.
"""
