"""Rollouts by transformers, for machines and checkpoints that vLLM does not run on.

The loop over tokens is our own: `generate` of transformers would compute positions itself, and
those of Qwen2.5-VL differ from what vLLM and our learner use. A prompt is computed once for its
group; then its cache is repeated for each answer. Several groups run as one batch, padded on the
left, until the last of their answers has ended.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from actrep_ray.config import ConfigError, LoraConfig, RolloutConfig, VideoConfig
from actrep_ray.models import layout
from actrep_ray.models.lora import add_adapters, check_adapter, is_adapter
from actrep_ray.models.qwen_vl import EncodedPrompt, load_model
from actrep_ray.records import Prompt, RolloutGroup
from actrep_ray.rollout.draws import answer_keys, draw, numbers
from actrep_ray.rollout.engine import QwenVLEngine, SamplingSettings
from actrep_ray.weights.buckets import Weights, magnitude, verify_magnitudes


class HfEngine(QwenVLEngine):
    """A transformers model that generates, for one Qwen-VL checkpoint.

    Args:
        model_path: Folder of the checkpoint.
        rollout_cfg: Sizes and sampling; `tensor_parallel_size` must be 1.
        video_cfg: Where frames are cached.
        device: Where to compute.
        seed: With a prompt's id, it decides what is drawn.
        dtype: Dtype of computation; float32 on a CPU and bfloat16 on a GPU by default.
        lora: Given if `load_weights` brings adapters of this make, not all weights.
    """

    def __init__(
        self,
        model_path: str | Path,
        rollout_cfg: RolloutConfig,
        video_cfg: VideoConfig,
        *,
        device: Literal["cpu", "cuda"],
        seed: int,
        dtype: Literal["float32", "bfloat16"] | None = None,
        lora: LoraConfig | None = None,
    ) -> None:
        if rollout_cfg.tensor_parallel_size != 1:
            raise ConfigError(
                f"rollout.tensor_parallel_size={rollout_cfg.tensor_parallel_size}: rollout.engine="
                "hf computes on one device; expected 1, or rollout.engine=vllm"
            )
        if device == "cpu":
            torch.set_num_threads(rollout_cfg.num_threads)
        super().__init__(model_path, rollout_cfg, video_cfg, device=device, dtype=dtype, lora=lora)
        self._max_num_seqs = rollout_cfg.max_num_seqs
        self._device = torch.device(device)
        self._model: Any = load_model(model_path, dtype=str(self.dtype).removeprefix("torch."))
        if lora is not None:
            add_adapters(self._model, lora)
        self._model.to(self._device).eval()
        self._seed = seed
        self._waiting: deque[tuple[Prompt, SamplingSettings]] = deque()

    @property
    def num_unfinished(self) -> int:
        """Prompts that wait for their batch."""
        return len(self._waiting)

    def add(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Take prompts; see `Engine.add`."""
        self._waiting.extend((prompt, settings) for prompt in prompts)

    def step(self) -> list[RolloutGroup]:
        """Answer one batch of prompts to its end; see `Engine.step`."""
        if not self._waiting:
            return []
        _, settings = self._waiting[0]
        batch_size = max(1, self._max_num_seqs // settings.group_size)
        prompts: list[Prompt] = []
        while self._waiting and len(prompts) < batch_size:
            prompt, sampling = self._waiting[0]
            if sampling != settings:
                break
            prompts.append(prompt)
            self._waiting.popleft()
        return self._generate_batch(prompts, settings)

    def clear(self) -> None:
        """Forget the prompts that wait."""
        self._waiting.clear()

    def replace_weights(self, weights: Weights) -> None:
        """Copy the weights into the model; see `Engine.load_weights`."""
        held = self._held_weights()
        given = layout.as_computed(self._model, self._by_module_name(weights))
        if unknown := given.keys() - held.keys():
            raise ValueError(f"{min(unknown)}: the model has no such weight")
        if missing := held.keys() - given.keys():
            raise ValueError(f"{len(missing)} weights were not given, among them {min(missing)}")
        with torch.no_grad():
            for name, weight in given.items():
                if weight.shape != held[name].shape:
                    raise ValueError(
                        f"{name}: got shape {tuple(weight.shape)}, "
                        f"expected {tuple(held[name].shape)}"
                    )
                held[name].copy_(weight)

    def verify_weights(self, weights: Weights) -> None:
        """Compare all adapters, or the norms; see `Engine.verify_weights`."""
        held, given = self._held_weights(), self._by_module_name(weights)
        compared = [n for n in given if self.lora is not None or n.endswith("norm.weight")]
        verify_magnitudes({n: magnitude(held[n]) for n in compared}, given, self.dtype)

    def _held_weights(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that `load_weights` replaces."""
        held = dict(self._model.named_parameters())
        if self.lora is None:
            return held
        return {name: parameter for name, parameter in held.items() if is_adapter(name)}

    def _by_module_name(self, weights: Weights) -> dict[str, torch.Tensor]:
        """The weights that were given, by the names of the model's parameters."""
        if self.lora is not None:
            check_adapter(weights)
        given = {_module_name(name): weight for name, weight in weights.items()}
        if self._model.config.tie_word_embeddings:
            given.pop("lm_head.weight", None)
        return given

    def sleep(self) -> None:
        """Move the weights to the CPU; see `Engine.sleep`."""
        self._model.to("cpu")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Move the weights back to the device."""
        self._model.to(self._device)

    def shutdown(self) -> None:
        """Free the model's memory."""
        self._model = None
        self.clear()

    def _generate_batch(
        self, prompts: Sequence[Prompt], settings: SamplingSettings
    ) -> list[RolloutGroup]:
        asked, encoded, keys = [], [], []
        for prompt in prompts:
            with self.refusing(prompt):
                frames = self.frames.get_all(prompt.plan)
                inputs = self.inputs.encode(prompt.question, prompt.plan, *frames)
                self.check_length(prompt, len(inputs.input_ids), settings.max_tokens)
                asked.append(prompt)
                encoded.append(inputs)
                keys += answer_keys(self._seed, prompt.prompt_id, settings.group_size)
        if not asked:
            return []
        tokens, log_probs = self._sample(_pad_left(encoded, self._device), settings, keys)
        return [
            self._group(prompt, tokens[i], log_probs[i], len(encoded[i].input_ids))
            for i, prompt in enumerate(asked)
        ]

    @torch.inference_mode()
    def _sample(
        self, batch: "_Batch", settings: SamplingSettings, keys: Sequence[int]
    ) -> tuple[list[list[list[int]]], list[list[list[float]]]]:
        """Tokens and log-probabilities by prompt, answer and position."""
        group_size, num_answers = settings.group_size, len(batch.input_ids) * settings.group_size
        output = self._model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            pixel_values_videos=batch.pixel_values.to(self.dtype),
            video_grid_thw=batch.grid_thw,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(group_size)
        logits = output.logits[:, -1].repeat_interleave(group_size, 0)
        mask = batch.attention_mask.repeat_interleave(group_size, 0)
        position = batch.next_position.repeat_interleave(group_size)
        ends = torch.tensor(self.inputs.end_ids, device=self._device)
        is_done = torch.zeros(num_answers, dtype=torch.bool, device=self._device)
        tokens: list[list[int]] = [[] for _ in range(num_answers)]
        log_probs: list[list[float]] = [[] for _ in range(num_answers)]
        for step in range(settings.max_tokens):
            drawn_by = numbers(keys, [step] * num_answers)
            token, log_prob = self._choose(logits.float(), settings, drawn_by)
            for i in torch.nonzero(~is_done).flatten().tolist():
                tokens[i].append(int(token[i]))
                log_probs[i].append(float(log_prob[i]))
            is_done |= torch.isin(token, ends)
            if step + 1 == settings.max_tokens or bool(is_done.all()):
                break
            mask = torch.cat([mask, mask.new_ones(num_answers, 1)], dim=1)
            output = self._model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=position.expand(3, -1)[:, :, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits, position = output.logits[:, -1], position + 1
        chunks = range(0, num_answers, group_size)
        return (
            [tokens[i : i + group_size] for i in chunks],
            [log_probs[i : i + group_size] for i in chunks],
        )

    def _choose(
        self, logits: torch.Tensor, settings: SamplingSettings, drawn_by: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A token for each row of logits [B, V] by its number [B], and its log-probability."""
        logits[:, list(self.inputs.visual_token_ids)] = -torch.inf
        if settings.temperature == 0:
            token = logits.argmax(dim=-1)
        else:
            logits = nucleus(logits / settings.temperature, settings.top_p)
            token = draw(torch.softmax(logits, dim=-1), drawn_by)
        log_probs = torch.log_softmax(logits, dim=-1)
        return token, log_probs.gather(1, token[:, None])[:, 0]

    def _group(
        self,
        prompt: Prompt,
        tokens: list[list[int]],
        log_probs: list[list[float]],
        num_prompt_tokens: int,
    ) -> RolloutGroup:
        rollouts = tuple(
            self.rollout(
                prompt,
                i,
                token_ids=tokens[i],
                log_probs=log_probs[i],
                policy_version=self.policy_version,
            )
            for i in range(len(tokens))
        )
        return RolloutGroup(prompt, rollouts, num_prompt_tokens)


@dataclass(frozen=True)
class _Batch:
    """Prompts padded on the left to the longest.

    Attributes:
        input_ids: int64 [B, P]
        attention_mask: int64 [B, P], 0 at padding.
        position_ids: int64 [3, B, P]
        next_position: int64 [B]
        pixel_values: float32 [num_patches, patch_dim], of all prompts
        grid_thw: int64 [B, 3]
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    next_position: torch.Tensor
    pixel_values: torch.Tensor
    grid_thw: torch.Tensor


def _pad_left(prompts: Sequence[EncodedPrompt], device: torch.device) -> _Batch:
    longest = max(len(prompt.input_ids) for prompt in prompts)
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    positions = torch.zeros(3, len(prompts), longest, dtype=torch.int64)
    for i, prompt in enumerate(prompts):
        num_tokens = len(prompt.input_ids)
        input_ids[i, -num_tokens:] = prompt.input_ids
        mask[i, -num_tokens:] = 1
        positions[:, i, -num_tokens:] = prompt.position_ids
    return _Batch(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        next_position=torch.tensor([prompt.next_position for prompt in prompts], device=device),
        pixel_values=torch.cat([prompt.pixel_values for prompt in prompts]).to(device),
        grid_thw=torch.cat([prompt.grid_thw for prompt in prompts]).to(device),
    )


def nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Leave out the unlikeliest tokens [B, V] that together have at most 1 - top_p."""
    if top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1)
    is_out = torch.softmax(ordered, dim=-1).cumsum(dim=-1) <= 1 - top_p
    is_out[:, -1] = False
    return logits.masked_fill(is_out.scatter(1, order, is_out), -torch.inf)


def _module_name(name: str) -> str:
    """The model's name of a weight; older checkpoints name the components differently."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(
        ("model.visual.", "model.language_model.")
    ):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name
