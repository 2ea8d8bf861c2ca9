"""Foreign formats: HDF5 dictionary, SAELens, sparsify, dictionary_learning."""
