"""Asynchronous RLOO: a policy trained against a reward URL, with generation elsewhere.

settings   config.py
data       prompts.py, samples.py, ledger.py
pure maths advantage.py, loss.py, ragged.py
generation generation.py (interface), vllm_client.py, vllm_server.py, embedded.py (decoding.py)
rewards    reward.py, get_reward.py (OpenRLHF's dialect)
flow       rollout.py (prompt -> samples -> rewards -> buffer), learner.py, train.py
ranks      team.py: rank 0 leads a run of several processes
weights    policy.py, lora.py, weight_sync.py, weight_transfer.py, checkpoint.py
insight    evaluation.py, insight.py, run_metrics.py, progress.py, report.py
"""
