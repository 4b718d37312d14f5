"""A trained model as an MLflow model, served over HTTP."""
