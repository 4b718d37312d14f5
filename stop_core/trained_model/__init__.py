"""A trained model as a folder: loading, preprocessing, exporting, serving."""
