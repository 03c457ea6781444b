"""What dividing experts among ranks costs, by formula."""
