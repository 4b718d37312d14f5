"""Text embeddings of the classes, computed once or in every step.

Shapes: N classes, E channels of the joint text-video space, S sentences of L token ids.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stop_core.clip.tower import in_float32
from stop_core.datasets import refuse_twins
from stop_core.model.video_model import VideoModel


class ClassTexts:
    """The sentences of all classes, with one embedding per class.

    Several sentences per class are an ensemble: the mean of their embeddings, normalised again
    (Radford et al., ICML 2021, section 3.1.4).

    The model embeds the sentences once, at first use, if its text tower is frozen; otherwise in
    every call, with gradients.
    """

    def __init__(self, model: VideoModel, sentences: Sequence[Sequence[str]]) -> None:
        counts = sorted({len(row) for row in sentences})
        if len(counts) != 1 or counts[0] < 1:
            raise ValueError(f"every class needs equally many sentences, at least 1; got {counts}")
        self.model = model
        self.templates = counts[0]
        self._classes = len(sentences)
        self._tokens_SL = model.tokenize([one for row in sentences for one in row])
        self._embedded: Tensor | None = None

    def __len__(self) -> int:
        return self._classes

    def refuse_twins(self, names: Sequence[str]) -> None:
        """Raises ValueError with the `names` of two classes that have the same token ids."""
        tokens_SL = self.model.read_tokens(self._tokens_SL)
        refuse_twins(names, [tuple(row) for row in tokens_SL.reshape(len(self), -1).tolist()])

    def embeddings(self) -> Tensor:
        """Returns the embeddings, [N, E], L2-normalised."""
        if self.model.trains_text:
            return self._embed()
        if self._embedded is None:
            # They serve all steps, so they are computed in float32 even if the videos are not.
            with torch.no_grad(), in_float32(self.model.logit_scale):
                self._embedded = self._embed()
        return self._embedded

    def _embed(self) -> Tensor:
        rows_SE = self.model.encode_tokens(self._tokens_SL)
        if self.templates == 1:
            return rows_SE
        return F.normalize(rows_SE.unflatten(0, (-1, self.templates)).mean(1), dim=-1)
