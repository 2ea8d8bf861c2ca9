"""Foreign formats: HDF5 dictionary, sparsify, dictionary_learning."""
