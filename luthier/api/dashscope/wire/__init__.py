"""The request and answer models of DashScope's API, and what of them we mean."""
