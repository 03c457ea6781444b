"""What a step costs on the host: launches, operator calls and Python time, measured without a GPU."""
