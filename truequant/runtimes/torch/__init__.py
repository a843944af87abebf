"""torch.export: a program as float ops of torch between quantizing ops."""
