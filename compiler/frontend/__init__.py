"""From a torch module to operations on views: what torch.export shows, and what each of it means here."""
