"""What Nightfold is compared with, each a plain script that knows nothing of Nightfold."""
