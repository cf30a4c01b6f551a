"""The server for people and programs: a web page and a JSON endpoint that answer untrusted requests within limits."""
