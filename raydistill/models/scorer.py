"""Inference code that is stored beside a registered student; it runs without raydistill, on transformers and torch.

MLflow calls :func:`_load_pyfunc` with the folder of the model version, which is an ordinary Hugging Face folder.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoImageProcessor, AutoTokenizer

BATCH_ROWS = 32
NUM_WORDS = 5
"""For each mask token of a text."""
OWN_TYPE = "raydistill_conv"
"""Models of this type bring raydistill's code, which lies beside this file and is run with the same right."""
OBJECTS = "ObjectDetection"
OF_PICTURES = ("ImageClassification", OBJECTS)
SIDES = ("xmin", "ymin", "xmax", "ymax")
NO_LIMIT = 10**9
"""A tokenizer that knows no limit says 10^30, which none of the fast ones takes as a length to cut to."""
SIGN = re.compile(r"[^\w\s\x00-\x7f]")
JOINERS = "\u00ad\u200c\u200d\u2060"
"""Signs that are not seen and part no word: soft hyphen, zero-width non-joiner and joiner, word joiner."""


class Scorer:
    """Texts, or pictures, in, answers out: what they look like depends on the head, and ``problem_type``, in
    config.json."""

    def __init__(self, folder: str, max_length: int | None = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        written = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        self.embedding = written.get("sentence_embedding")
        """Of a sentence encoder: {pooling, layers, normalize}."""
        heads = ("TokenClassification", "QuestionAnswering", "MaskedLM", *OF_PICTURES)
        named = str(written.get("architectures"))
        self.head = next((kind for kind in heads if kind in named), "SequenceClassification")
        auto = getattr(transformers, "AutoModel" if self.embedding else f"AutoModelFor{self.head}")
        is_own = written.get("model_type") == OWN_TYPE
        self.processor: Any = AutoImageProcessor.from_pretrained(folder) if self.head in OF_PICTURES else None
        own = {"trust_remote_code": is_own}
        self.tokenizer: Any = None if self.processor else AutoTokenizer.from_pretrained(folder, **own)
        self.model = auto.from_pretrained(folder, trust_remote_code=is_own).to(self.device).eval()
        self.layers = linear_layers(folder, self.embedding["layers"]) if self.embedding else []
        longest = self.tokenizer.model_max_length if self.tokenizer else None
        limits = [max_length, longest, num_positions(self.model)]
        self.max_length = min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)
        """Tokens that a row is cut to; None for a model that takes any number."""
        self.names = [name for _, name in sorted(self.model.config.id2label.items())]
        usual = "regression" if len(self.names) == 1 else "single_label_classification"
        usual = "sentence_embedding" if self.embedding else self.model.config.problem_type or usual
        told = {
            "regression": self._value,
            "multi_label_classification": self._labels,
            "sentence_embedding": self._vector,
        }
        self.answers = told.get(usual, self._label)
        self.is_symmetric = bool(getattr(self.model.config, "symmetric_pairs", False))
        """Whether a pair's answer is the mean of its two orders."""
        thresholds = getattr(self.model.config, "thresholds", None) or [0.5] * len(self.names)
        self.thresholds = torch.tensor(thresholds, dtype=torch.float64)
        """Probabilities from which on a label is given, where a row has any number of them."""

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """A DataFrame with a column ``text`` [and ``text_pair``], or one column of any name.

        A row gives ``{"label", "score"}``, the best label and its probability; with any number of labels a row
        ``{"labels", "scores"}``, those given and the probabilities of all; or ``{"value"}``, a number. A tagger of
        words gives ``{"entities"}``, a list of {label, text, start, end, score} in the text's order. A model that
        answers questions (``text``) on contexts (``text_pair``) gives ``{"answer", "score", "start", "end",
        "answers"}``: the answer and its place, "" and None where there is none, and the best ones in their order. A
        sentence encoder gives ``{"vector"}``, a list of numbers. A masked language model gives ``{"words"}``, for each
        mask token of a text a list of {word, score}, the likeliest first. Of pictures the
        column has their bytes, as files have them. A detector gives ``{"objects"}``, a list of {label, score, box}, the
        surest first; a box is {xmin, ymin, xmax, ymax} in pixels.
        """
        columns = list(model_input.columns)
        if self.processor:
            return self._pictures(model_input["image" if "image" in columns else columns[0]].tolist())
        texts = model_input["text" if "text" in columns else columns[0]].astype(str).tolist()
        if self.head == "TokenClassification":
            return [{"entities": self._entities(text)} for text in texts]
        if self.head == "MaskedLM":
            return [{"words": self._words(text)} for text in texts]
        pairs = None
        if self.embedding and "text_pair" in columns:
            raise ValueError("A sentence encoder reads one text a row: give a column text alone.")
        if "text_pair" in columns:
            pairs = model_input["text_pair"].astype(str).tolist()
        if self.head == "QuestionAnswering":
            if pairs is None:
                raise ValueError("A row needs a question and a context: give columns text and text_pair.")
            return [self._answer(*pair) for pair in zip(texts, pairs, strict=True)]
        scored: list[dict[str, Any]] = []
        for start in range(0, len(texts), BATCH_ROWS):
            rows = slice(start, start + BATCH_ROWS)
            scored.extend(self._score(texts[rows], pairs[rows] if pairs else None))
        return scored

    @torch.inference_mode()
    def _pictures(self, contents: list[bytes]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for start in range(0, len(contents), BATCH_ROWS):
            images = [opened(content) for content in contents[start : start + BATCH_ROWS]]
            pixels = self.processor(images, return_tensors="pt")["pixel_values"].to(self.device)
            output = self.model(pixel_values=pixels)
            is_detector = self.head == OBJECTS
            found += self._objects(output, images) if is_detector else self.answers(output.logits.float().cpu())
        return found

    def _objects(self, output: Any, images: list[Any]) -> list[dict[str, Any]]:
        least = (getattr(self.model.config, "object_detection", None) or {}).get("threshold", 0.5)
        sizes = [image.size[::-1] for image in images]
        told = []
        for one in self.processor.post_process_object_detection(output, threshold=least, target_sizes=sizes):
            rows = zip(*(one[name].float().cpu().tolist() for name in ("labels", "scores", "boxes")), strict=True)
            ordered = sorted(rows, key=lambda row: -row[1])
            named = [(self.names[int(label)], score, zip(SIDES, box, strict=True)) for label, score, box in ordered]
            told.append({"objects": [{"label": label, "score": s, "box": dict(box)} for label, s, box in named]})
        return told

    @torch.inference_mode()
    def _score(self, texts: list[str], pairs: list[str] | None) -> list[dict[str, Any]]:
        outputs = self._outputs(texts, pairs)
        if self.is_symmetric and pairs is not None:
            outputs = self._mean(torch.stack([outputs, self._outputs(pairs, texts)]).double())
        return self.answers(outputs)

    def _outputs(self, texts: list[str], pairs: list[str] | None) -> torch.Tensor:
        cut = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        inputs = self.tokenizer(texts, pairs, padding=True, return_tensors="pt", **cut).to(self.device)
        found = self.model(**inputs)
        return (self._pooled(found[0], inputs["attention_mask"]) if self.embedding else found.logits).float().cpu()

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        told = self.embedding or {}
        weights = mask[..., None].to(states.dtype)
        vectors = states[:, 0] if told["pooling"] == "cls" else (states * weights).sum(1) / weights.sum(1)
        for (weight, bias), about in zip(self.layers, told["layers"], strict=True):
            vectors = F.linear(vectors, weight.to(vectors), None if bias is None else bias.to(vectors))
            vectors = vectors.tanh() if about["activation"] == "Tanh" else vectors
        return F.normalize(vectors, dim=-1) if told["normalize"] else vectors

    def _mean(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs (N, C) that say what several ones (K, N, C) say in the mean: of numbers, or of probabilities."""
        if self.answers == self._value:
            return outputs.mean(0)
        if self.answers == self._label:
            return outputs.log_softmax(-1).logsumexp(0)
        return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)

    def _label(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        scores, labels = logits.softmax(-1).max(-1)
        found = zip(labels.tolist(), scores.tolist(), strict=True)
        return [{"label": self.names[label], "score": score} for label, score in found]

    def _labels(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        scores = logits.double().sigmoid()
        return [
            {
                "labels": [name for name, is_given in zip(self.names, given, strict=True) if is_given],
                "scores": dict(zip(self.names, row, strict=True)),
            }
            for row, given in zip(scores.tolist(), (scores >= self.thresholds).tolist(), strict=True)
        ]

    def _vector(self, vectors: torch.Tensor) -> list[dict[str, Any]]:
        return [{"vector": vector} for vector in vectors.tolist()]

    def _value(self, logits: torch.Tensor) -> list[dict[str, Any]]:
        return [{"value": value} for value in logits[:, 0].tolist()]

    @torch.inference_mode()
    def _words(self, text: str) -> list[list[dict[str, Any]]]:
        """A text that is too long is read in pieces, all of one length up to a token."""
        before, after = around(self.tokenizer)
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        count = max(1, -(-len(ids) // ((self.max_length or NO_LIMIT) - len(before) - len(after))))
        found: list[list[dict[str, Any]]] = []
        for i in range(count):
            piece = ids[i * len(ids) // count : (i + 1) * len(ids) // count]
            row = torch.tensor([[*before, *piece, *after]], device=self.device)
            places = row[0] == self.tokenizer.mask_token_id
            if not places.any():
                continue
            scores, tokens = self.model(input_ids=row).logits[0, places].float().softmax(-1).cpu().topk(NUM_WORDS)
            for unit in zip(tokens.tolist(), scores.tolist(), strict=True):
                pairs = zip(*unit, strict=True)
                found.append([{"word": word_of(self.tokenizer, token), "score": score} for token, score in pairs])
        return found

    @torch.inference_mode()
    def _entities(self, text: str) -> list[dict[str, Any]]:
        settings = self.model.config.token_classification
        words = word_places(text, settings["words"])
        if not words:
            return []
        labels, probs = self._read(torch.stack(self._word_logits(text, words, settings)))
        tagged = [self.names[label] for label in labels.tolist()]
        entities: list[dict[str, Any]] = []
        open_kind, scores = None, probs.gather(1, labels[:, None])[:, 0].tolist()
        for i, tag in enumerate(tagged):
            prefixed = settings["scheme"] == "iob2"
            begins, kind = (tag[:2] == "B-", tag[2:]) if prefixed else (settings["scheme"] == "words", tag)
            if tag == "O" or (prefixed and not begins and kind != open_kind):
                open_kind = None
            elif begins or kind != open_kind:
                open_kind = kind
                entities.append({"label": kind, "words": [i]})
            else:
                entities[-1]["words"].append(i)
        for entity in entities:
            inside = entity.pop("words")
            start, end = words[inside[0]][0], words[inside[-1]][1]
            entity |= {"text": text[start:end], "start": start, "end": end}
            entity["score"] = sum(scores[i] for i in inside) / len(inside)
        return entities

    def _read(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The label of each word of a text (W,) and its probabilities of all, (W, C); of a CRF the likeliest sequence
        of labels, each of which is the best one of the sequences through it, and the marginals."""
        chain = getattr(self.model.config, "crf", None)
        if chain is None:
            return logits.argmax(-1), logits.softmax(-1)
        scores = torch.tensor(chain["transitions"], dtype=torch.float64)
        sums = passed(logits, scores, lambda ways: ways.logsumexp(0))
        return passed(logits, scores, lambda ways: ways.amax(0)).argmax(-1), sums.softmax(-1)

    def _word_logits(self, text: str, words: list[tuple[int, int]], settings: dict[str, Any]) -> list[torch.Tensor]:
        """Of each word's first token, in the window of a long text in which it is farthest from a border."""
        length, stride = self.max_length, settings["stride"]
        cut = {} if length is None else {"max_length": length, "truncation": True}
        if length is not None:
            cut |= {"return_overflowing_tokens": True, "stride": length // 4 if stride is None else stride}
        shown = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
        encoded = self.tokenizer([text], padding=True, return_tensors="pt", **shown, **cut)
        encoded.pop("overflow_to_sample_mapping", None)
        offsets, special = encoded.pop("offset_mapping").tolist(), encoded.pop("special_tokens_mask").tolist()
        logits = self.model(**encoded.to(self.device)).logits.double().cpu()
        best = [(-1.0, logits[0, 0])] * len(words)
        for row, marks in enumerate(special):
            own = [i for i, mark in enumerate(marks) if not mark]
            ends = [offsets[row][i][1] for i in own]
            for word, (start, _) in enumerate(words):
                place = bisect_right(ends, start)
                is_inside = (row == 0 or offsets[row][own[0]][0] <= start) if own else False
                if is_inside and (place < len(own) or row == len(special) - 1):
                    place = min(place, len(own) - 1)
                    left = float("inf") if row == 0 else place
                    right = float("inf") if row == len(special) - 1 else len(own) - 1 - place
                    if min(left, right) > best[word][0]:
                        best[word] = (min(left, right), logits[row, own[place]])
        return [found for _, found in best]

    @torch.inference_mode()
    def _answer(self, question: str, context: str) -> dict[str, Any]:
        """Spans count the sum of two logits in a window, "no answer" the least of its token's; see the model's card."""
        settings = getattr(self.model.config, "question_answering", None) or {}
        places: dict[tuple[int, int], tuple[float, float]] = {}
        none = (float("inf"), 1.0)
        for logits, offsets in self._windows(question, context, settings.get("stride")):
            sure = logits.log_softmax(0)
            none = min(none, (float(logits[0].sum()), float(sure[0].sum().exp())))
            count, most = len(offsets), settings.get("max_answer_length", 30)
            allowed = torch.ones(count, count, dtype=torch.bool).triu().tril(most - 1)
            sums = (logits[1:, :1] + logits[1:, 1]).masked_fill(~allowed, -float("inf")).flatten()
            for cell in sums.topk(min(int(allowed.sum()), settings.get("num_answers", 3))).indices.tolist():
                begin, end = divmod(cell, count)
                place = (offsets[begin][0], offsets[end][1])
                found = (float(sums[cell]), float((sure[1 + begin, 0] + sure[1 + end, 1]).exp()))
                places[place] = max(found, places.get(place, found))
        ordered = sorted(places, key=lambda place: -places[place][0])[: settings.get("num_answers", 3)]
        answers = []
        for start, end in ordered:
            text = context[start:end]
            begin, text = start + len(text) - len(text.lstrip()), text.strip()
            answers.append({"text": text, "start": begin, "end": begin + len(text), "score": places[start, end][1]})
        threshold = settings.get("null_threshold")
        if not answers or (threshold is not None and none[0] - places[ordered[0]][0] > threshold):
            return {"answer": "", "score": none[1], "start": None, "end": None, "answers": answers}
        best = dict(answers[0])
        return {"answer": best.pop("text"), **best, "answers": answers}

    def _windows(
        self, question: str, context: str, stride: int | None
    ) -> Iterator[tuple[torch.Tensor, list[list[int]]]]:
        """Of each window of a context the logits (1 + tokens, 2) of its first token, which says that there is no
        answer, and of those of the context, and where these begin and end in it."""
        cut: dict[str, Any] = {}
        if self.max_length is not None:
            half = (self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)) // 2
            asked = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            question = question[: asked[half - 1][1]] if len(asked) > half else question
            overlap = self.max_length // 4 if stride is None else stride
            cut = {"truncation": "only_second", "max_length": self.max_length, "stride": overlap}
        shown = {"return_offsets_mapping": True, "return_overflowing_tokens": bool(cut)}
        encoded = self.tokenizer([question], [context], padding=True, return_tensors="pt", **shown, **cut)
        encoded.pop("overflow_to_sample_mapping", None)
        offsets = encoded.pop("offset_mapping").tolist()
        parts = [encoded.sequence_ids(row) for row in range(len(offsets))]
        output = self.model(**encoded.to(self.device))
        logits = torch.stack([output.start_logits, output.end_logits], dim=-1).double().cpu()
        for row, (ids, places) in enumerate(zip(encoded["input_ids"].tolist(), offsets, strict=True)):
            first = ids.index(self.tokenizer.cls_token_id) if self.tokenizer.cls_token_id in ids else 0
            inside = [i for i, part in enumerate(parts[row]) if part == 1 and places[i][1] > places[i][0]]
            yield logits[row, [first, *inside]], [places[i] for i in inside]


def word_places(text: str, pattern: str) -> list[tuple[int, int]]:
    """Begin and end of each word that a pattern finds. It does not see combining marks and joiners, of which ``\\w``
    knows nothing: they belong to what stands before them, as in Hindi, Tamil, vocalised Arabic, or e with U+0301."""
    hidden = {
        found.start()
        for found in SIGN.finditer(text)
        if (found[0] in JOINERS or unicodedata.category(found[0])[0] == "M") and not text[found.start() - 1].isspace()
    } - {0}
    if not hidden:
        return [found.span() for found in re.finditer(pattern, text)]
    seen = [i for i in range(len(text)) if i not in hidden]
    ends = [*seen[1:], len(text)]
    bare = "".join(text[i] for i in seen)
    return [(seen[found.start()], ends[found.end() - 1]) for found in re.finditer(pattern, bare)]


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and after a row's own."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    own = [i for i, is_special in enumerate(special) if not is_special] or [len(ids), len(ids) - 1]
    return ids[: own[0]], ids[own[-1] + 1 :]


def word_of(tokenizer: Any, token: int) -> str:
    """A token in words; one that continues a word as it is in the vocabulary."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    return name if name.startswith("##") else str(tokenizer.decode([token])).strip() or name


def opened(content: bytes) -> Any:
    """A picture in RGB, upright as its EXIF says; transparency is dropped, as transformers' pipelines do it. Raises
    whatever Pillow does for what is no picture, or a broken one."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as stored:
        stored.load()
        image: Any = ImageOps.exif_transpose(stored)
        if image.mode.startswith("I"):  # 16 bits a pixel, which convert would cut off at 255
            image = image.convert("I").point(lambda value: value / 257).convert("L")
        return image.convert("RGB")


def passed(logits: torch.Tensor, scores: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Scores (W, C) of all sequences through each label of each word of a CRF, reduced: their log sum, or the best.

    ``scores``: (C + 1, C), from a label to the next one, and in the last row from the beginning.
    """
    before, after = [scores[-1]], [torch.zeros_like(scores[-1])]
    for forwards, backwards in zip(logits[:-1], logits.flip(0)[:-1], strict=True):
        before.append(reduce((before[-1] + forwards)[:, None] + scores[:-1]))
        after.append(reduce((after[-1] + backwards)[:, None] + scores[:-1].T))
    return torch.stack(before) + logits + torch.stack(after[::-1])


def linear_layers(folder: str, about: list[Any]) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias of each linear layer behind a sentence encoder's pooling."""
    from safetensors.torch import load_file

    found = Path(folder).glob("*_Dense/model.safetensors")
    places = sorted(found, key=lambda path: int(path.parent.name.split("_")[0]))
    assert len(places) == len(about), f"{folder} has {len(places)} of the {len(about)} layers that its config names"
    read = [load_file(path) for path in places]
    return [(one["linear.weight"], one.get("linear.bias")) for one in read]


def num_positions(model: torch.nn.Module) -> int | None:
    """Tokens that the model has positions for; RoBERTa's kin count them from behind their padding index."""
    positions = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(positions - module.padding_idx - 1)
    return positions


def _load_pyfunc(folder: str, model_config: dict[str, Any] | None = None) -> Scorer:
    return Scorer(folder, (model_config or {}).get("max_length"))
