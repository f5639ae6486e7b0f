"""Networks: their noise schedules, predictions, calls and costs."""
