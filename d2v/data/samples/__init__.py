"""Small real samples that ship with the package, so that every command runs offline from the first minute.

``fashion_mnist_*``: the test split of Fashion-MNIST in its original idx files; ``prompts.zip``: spoken prompts with
their transcripts, as Ogg; ``wordnet_glosses.tsv.gz``: WordNet's glosses with their lexical classes. ``*.LICENSE``
beside them names authors and terms. They are whole, so that probes have something to learn from, and at most 5 MB each.
"""
