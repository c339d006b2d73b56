"""What the small trained model can do, measured by what it says: held-out prompts, greedy, through the runtime."""
