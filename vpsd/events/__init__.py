"""Who did what: rows are added in the transaction of what they tell, and stay."""
