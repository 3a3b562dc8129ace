"""The gate between a challenger and the champion: rules, what they are judged on, and the move of the alias."""
