"""Asynchronous RLOO: a policy trained against a reward URL, with generation elsewhere.

settings   config.py
data       prompts.py, samples.py, ledger.py
pure maths advantage.py, loss.py, ragged.py
stages     generation.py (interface), vllm_client.py, vllm_server.py, embedded.py; reward.py
flow       rollout.py (prompt -> samples -> rewards -> buffer), learner.py, train.py
weights    policy.py, weight_sync.py, checkpoint.py
insight    evaluation.py, insight.py, report.py
"""
