"""The proof: named runs of the method, its parts and its peers in the regime of the paper.

The network has learnt its training images by heart there: ResNet-20 on the first 1 000 images of
each class of CIFAR-10. runs.py declares the runs, and docs/reproduce.md says how they are started.
"""
