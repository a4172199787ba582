"""What is read off a live torch model: its outputs, its parameters, who wrote them, and its optimizer."""
