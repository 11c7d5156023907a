"""Preference data: readers, the project's two file formats, and converters into them.

Every file is JSON lines, UTF-8, plain or gzipped (``.jsonl``, ``.jsonl.gz``). Extra keys are
allowed and ignored.

**Pairs** (:mod:`trainer.data.preferences`), one object per line::

    {"prompt": [{"role": "user", "content": "…"}], "chosen": "…", "rejected": "…"}

- ``prompt``: the turns before the response, or one string, which is one turn of the user.
- ``chosen``, ``rejected``: the two responses.
- ``margin`` (optional): a number that Δr = r_chosen − r_rejected has to lead by.

The reader also takes TRL's other preference formats: ``chosen`` and ``rejected`` as lists of
messages, after an explicit ``prompt`` or with the prompt as their common beginning; and plain text
with an implicit prompt: a dialogue of ``Human:`` and ``Assistant:`` turns as in HH, or else text
that is taken as already templated.

**Scored responses** (:mod:`trainer.data.scored`), one prompt per line::

    {"prompt_id": "ae-0002", "prompt": [messages],
     "responses": [{"model": "claude", "text": "…", "gold": -5.1}, …]}

- ``gold`` is the gold score. Only differences within a prompt mean anything.
- ``prompt`` as above. At least one response; texts of one prompt may repeat.

``python -m trainer.data.generate`` asks a model server for responses, ``trainer.data.label`` a
reward URL for their gold scores, and ``trainer.data.split`` divides any such data five ways; they
read the forms of :mod:`trainer.data.responses`, raw UltraFeedback among them.

``python -m trainer.data.alpaca_eval`` writes ``train.jsonl`` and ``llmbar.jsonl`` as pairs and
``in_domain.jsonl``, ``prompt_ood.jsonl``, ``response_ood.jsonl`` and ``mutual_ood.jsonl`` as scored
responses. :func:`trainer.data.rows.is_scored` tells the two formats apart by the first row.
"""
