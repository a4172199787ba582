"""``report.html``: one file that needs no network, with curves to point at. Imports no torch."""
