"""MLflow: the store, runs, and the outbox that holds records until the store accepts them."""
