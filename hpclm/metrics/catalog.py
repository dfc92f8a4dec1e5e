"""hpclm's own metrics. All are fractions of 1, the best of several right answers counts, and higher is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hpclm.metrics.intents import are_intents, intent_accuracy, slot_f1
from hpclm.metrics.metric import Metric, References
from hpclm.metrics.text_scores import bleu, label_macro_f1, plain, rouge, squad_exact_match, squad_f1


def _mean_of_best(score: Callable[[str, str], float]) -> Callable[[Sequence[str], References], float]:
    """The mean over the predictions of the best score against any of its answers."""

    def whole(predictions: Sequence[str], references: References) -> float:
        pairs = zip(predictions, references, strict=True)
        return sum(max(score(made, one) for one in wanted) for made, wanted in pairs) / len(references)

    return whole


def _firsts(references: References) -> list[str]:
    return [one[0] for one in references]


EXACT_MATCH = Metric(
    "exact_match",
    _mean_of_best(lambda made, wanted: float(plain(made) == plain(wanted))),
    "the exact answer, except for surplus white space",
    always=True,
)
SQUAD_EXACT_MATCH = Metric(
    "squad_exact_match",
    _mean_of_best(squad_exact_match),
    "the same after SQuAD's normalisation: lower case, without punctuation and articles (evaluate-v1.1.py)",
)
SQUAD_F1 = Metric(
    "squad_f1",
    _mean_of_best(squad_f1),
    "F1 over the words after SQuAD's normalisation (evaluate-v1.1.py)",
)
LABEL_ACCURACY = Metric(
    "label_accuracy",
    _mean_of_best(lambda made, wanted: float(plain(made).lower() == plain(wanted).lower())),
    "the right label, ignoring case",
)
LABEL_MACRO_F1 = Metric(
    "label_macro_f1",
    lambda predictions, references: label_macro_f1(predictions, _firsts(references)),
    "the mean F1 over the labels that are an answer; a prediction that is not a label counts as wrong",
)
BLEU = Metric(
    "bleu",
    lambda predictions, references: bleu(predictions, _firsts(references)),
    "corpus BLEU-4 against the first answer, with sacrebleu's defaults (Papineni et al. 2002)",
)
BLEU_ZH = Metric(
    "bleu_zh",
    lambda predictions, references: bleu(predictions, _firsts(references), chinese=True),
    "the same with each Chinese character as a token, as sacrebleu's tokenize=zh",
)
ROUGE_1 = Metric(
    "rouge_1",
    _mean_of_best(lambda made, wanted: rouge(made, wanted)["rouge1"]),
    "ROUGE-1's F-measure (Lin 2004), as rouge-score has it; of Chinese and Japanese on characters",
)
ROUGE_2 = Metric(
    "rouge_2",
    _mean_of_best(lambda made, wanted: rouge(made, wanted)["rouge2"]),
    "ROUGE-2's F-measure, likewise",
)
ROUGE_L = Metric(
    "rouge_l",
    _mean_of_best(lambda made, wanted: rouge(made, wanted)["rougeL"]),
    "ROUGE-L's F-measure, likewise",
)
INTENT_ACCURACY = Metric(
    "intent_accuracy",
    lambda predictions, references: intent_accuracy(predictions, _firsts(references)),
    "the intent of an answer like `Intent: X / Slots: …`",
    always=True,
    applies=lambda references: are_intents(_firsts(references)),
)
SLOT_F1 = Metric(
    "slot_f1",
    lambda predictions, references: slot_f1(predictions, _firsts(references)),
    "micro F1 of the (slot, value) pairs of such an answer",
    always=True,
    applies=lambda references: are_intents(_firsts(references)),
)
