"""Accuracy by domain and its averages, as an `evaluate` module over `emo_r3.metrics`."""

import datasets
import evaluate

from emo_r3.metrics import domain_accuracy  # From: emo-r3

DESCRIPTION = """
Accuracy and macro-F1 for each domain, and the mean accuracy over in-domain (A_I), out-of-domain (A_O) and all domains
(A) as in EMO-R3, with 95 % intervals. Answers that could not be read (None or "") are wrong, and counted.
"""

# evaluate shows this below its own text, which ends with the arguments.
INPUTS = """
            domains (`list[str]`): the data set that each row is of.
            in_domain (`str` or `list[str]`, *optional*): the domain, or domains, that the model was trained on.
            **kwargs (*optional*): the other arguments of `emo_r3.metrics.domain_accuracy`: `trainings`, `baseline`,
                `confidences`, `distributions`, `reference_distributions` and `seed`.

        Returns `domains` (for each `count`, `unparsed`, `accuracy` and `macro_f1`), `A_I`, `A_O` and `A`.

        >>> domain_accuracy = evaluate.load("emo-r3/domain_accuracy")
        >>> found = domain_accuracy.compute(
        ...     predictions=["joy", "fear"], references=["joy", "awe"], domains=["emotion6", "emoset-2k"]
        ... )
        >>> found["A"]["value"]
        0.5
"""


def as_text(value):
    """An answer, text or id, as text; an id that pandas has made a float is the id again, and NaN no answer."""
    if value is None or isinstance(value, str):
        return value
    if value != value:
        return None
    if int(value) != value:
        raise TypeError(f"{value!r} is neither text nor a whole number")
    return str(int(value))


class Text(datasets.Features):
    """Columns of text or ids. The reading of `datasets`, value by value, takes several times as long."""

    def encode_example(self, example):
        return {name: as_text(value) for name, value in example.items()}

    def encode_batch(self, batch):
        lists = {name: column.tolist() if hasattr(column, "tolist") else column for name, column in batch.items()}
        return {name: [as_text(value) for value in column] for name, column in lists.items()}


class DomainAccuracy(evaluate.Metric):
    """The metric.

    Args:
        in_domain (`str`, `list[str]` or `dict`, *optional*): of `compute`, for where it can't be given there:
            `evaluate.combine` hands what `compute` gets to all its metrics.
    """

    def __init__(self, *args, in_domain=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.in_domain = in_domain

    def _info(self):
        # A plain "string" would refuse a first row without an answer.
        columns = ("predictions", "references", "domains")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="EMO-R3, arXiv:2602.23802",
            inputs_description=INPUTS,
            features=Text(dict.fromkeys(columns, datasets.Value("large_string"))),
            reference_urls=["https://arxiv.org/abs/2602.23802"],
        )

    def _compute(self, predictions, references, domains, in_domain=None, **kwargs):
        in_domain = self.in_domain if in_domain is None else in_domain
        if kwargs.get("baseline") is not None:
            kwargs["baseline"] = [as_text(answer) for answer in kwargs["baseline"]]
        return domain_accuracy(predictions, references, domains, in_domain, **kwargs)
