"""One file per noun of /v1; `routes.py` lists them all."""
