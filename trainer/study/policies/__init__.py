"""Policies against reward models of several losses, measured by the gold of the demo's town.

    seed → world, SFT policy, a reward model per arm → RLOO per arm and β → a record

``docs/results/policies_design.md`` says what is asked and how it is judged.
"""
