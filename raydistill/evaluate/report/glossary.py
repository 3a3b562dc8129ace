"""The terms of a page, a short sentence each, for those who do not work with them daily."""

from __future__ import annotations

from collections.abc import Iterable

TERMS = {
    "teacher": "The large model that the student learns from.",
    "student": "The small model that is trained to answer as its teacher does.",
    "without teacher": "The baseline: the same student, trained on labels alone; untrained where there are none.",
    "TF-IDF": "A linear model on how often a row has which words and pairs of words; a transformer has to be better.",
    "champion": "The registered version that is in use.",
    "test rows": "Rows that no training and no choice has seen.",
    "validation": "Rows that nothing is trained on, by which the best epoch and the best trial are chosen.",
    "95 % interval": "Where the value lies with a confidence of 95 %; few rows make it wide.",
    "accuracy": "Share of the rows for which the model names the right class.",
    "all labels right": "Share of the rows that get exactly their labels, none more and none less.",
    "macro F1": "The mean of the F1 of all classes or labels, so that rare ones count as much as frequent ones.",
    "micro F1": "The F1 of all decisions together, so that frequent labels count most.",
    "macro precision": "The mean of the precision of all classes, so that rare ones count as much as frequent ones.",
    "macro recall": "The mean of the recall of all classes, so that rare ones count as much as frequent ones.",
    "micro precision": "Of all labels that are given, the share that is right.",
    "micro recall": "Of all labels that rows have, the share that is given.",
    "F1": "The harmonic mean of a label's precision and recall.",
    "precision": "Of the rows given this label, the share that have it.",
    "recall": "Of the rows with this label, the share that are found.",
    "answer F1": "How far the words of an answer are those of the right one: the harmonic mean of their precision and "
    "recall, without articles, punctuation and case; 1 where no answer is given and there is none.",
    "exact match": "Share of the answers with the words of a right one, without articles, punctuation and case.",
    "F1 where there is an answer": "Answer F1 of the questions that have an answer.",
    "right where there is none": "Of the questions without an answer in their text, the share that get none.",
    "entity F1": "The harmonic mean of entity precision and recall.",
    "entity precision": "Of the entities that the model names, the share that are there, with these words and type.",
    "entity recall": "Of the entities that are there, the share that the model names, with all words and type.",
    "token accuracy": "Share of the words that get the right label; most words are of no entity.",
    "masked accuracy": "Share of the hidden tokens for which the model finds the right one likeliest.",
    "perplexity": "Among how many equally likely tokens the model hesitates on average (e to the log loss); lower is "
    "better.",
    "mAP": "Mean average precision, COCO's: the area under precision by recall, the surest finds first; the mean over "
    "all classes and over how far a box has to overlap the right one (IoU 0.5 to 0.95).",
    "mAP at IoU 0.5": "The same where boxes need to overlap by half of what they cover together.",
    "mAP at IoU 0.75": "The same where boxes need to overlap by three quarters of what they cover together.",
    "mAP of small objects": "Of objects below 32 x 32 pixels.",
    "mAP of medium objects": "Of objects from 32 x 32 to 96 x 96 pixels.",
    "mAP of large objects": "Of objects above 96 x 96 pixels.",
    "mean recall": "Share of the objects that are found at all, however surely; the mean over classes and IoU.",
    "AUC": "How well the scores put rows with a label before those without: 1 is perfect, 0.5 is guessing.",
    "MCC": "Correlation of labels and predictions: 1 is perfect, 0 is guessing.",
    "log loss": "Mean penalty for the probability given to what is right; lower is better.",
    "expected calibration error": "How far the model's certainty lies from its accuracy on average (ECE); 0 is "
    "perfect.",
    "Pearson correlation": "How close answers and targets lie to a straight line: 1 is on it, 0 is no relation.",
    "Spearman correlation": "How well the answers put rows in the order of their targets: 1 is perfect.",
    "Spearman of similarities": "How well a text's similarities to all others are in the order that the teacher sees.",
    "recall@1 of neighbours": "Share of the texts whose nearest neighbour by the teacher is nearest by the model, too.",
    "recall@10 of neighbours": "Share of a text's 10 nearest neighbours by the teacher that are among its 10 here.",
    "cosine to the teacher": "Mean cosine of the model's vectors with the teacher's: 1 is the same direction.",
    "nDCG@10": "How far up the 10 best documents of a query its own are: 1 is at the top, 0 not among them.",
    "recall@1": "Share of a query's documents that are first.",
    "recall@10": "Share of a query's documents that are among the first 10.",
    "nDCG@10, teacher's documents": "The same with the model's queries and the teacher's vectors of the documents.",
    "recall@10, teacher's documents": "The same with the model's queries and the teacher's vectors of the documents.",
    "R²": "Share of the targets' variance that the answers explain: 1 is perfect, 0 as good as always saying the mean.",
    "RMSE": "Root of the mean squared error, in the target's unit; lower is better.",
    "mean absolute error": "Mean distance of answer and target, in the target's unit; lower is better.",
    "agreement with the teacher": "How far both say the same of the rows, right or wrong: 100 % is always.",
    "retention": "The student's value divided by the teacher's; where less is better, the teacher's by the student's.",
    "latency p50": "Milliseconds for one row, the median of many calls; p95: 95 % of the calls are faster.",
    "trial": "One student, trained with one choice of the settings that the sweep varies.",
    "objective": "What the search tries to make as high (max) or as low (min) as it can.",
    "constraints": "Limits that a trial must keep to be chosen.",
    "stopped early": "Ended before its last step, because it lagged behind the others.",
    "rejected": "Not trained, because it breaks a constraint that is known before, or repeats a trial.",
    "fresh seed": "Another random start and order of the rows, by which luck is told from gain.",
    "Pareto front": "The trials that no other beats in every objective.",
    "best compromise": "The trial between the ends of the Pareto front whose objectives, as shares of their ranges on "
    "it, add up to most (its knee).",
    "lost from validation to test": "How much worse a trial is on test than the search saw it on validation.",
}


def glossary(terms: Iterable[str]) -> dict[str, str]:
    """These terms with their sentences, in the order of the alphabet."""
    return {term: TERMS[term] for term in sorted(terms, key=str.lower)}
