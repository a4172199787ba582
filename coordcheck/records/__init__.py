"""What was recorded, as frames and files: columns, kinds and names, and where they are kept. Imports no torch."""
