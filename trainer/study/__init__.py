"""Studies that anyone can repeat: does a loss make a reward model more robust?"""
