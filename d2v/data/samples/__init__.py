"""Small real samples that ship with the package, so that every command runs offline from the first minute.

``fashion_mnist_*``: the test split of Fashion-MNIST in its original idx files; ``*.LICENSE`` beside them says whose
they are.
"""
