"""Requests and responses of the HTTP API, one module per noun.

Unknown fields are refused. Knows neither routes nor backends; sizes are checked against `Limits`.
"""
