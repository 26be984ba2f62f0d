"""`model`: what is trained, and through adapters or not."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from actrep_ray.config.section import Contradiction, Float, Positive, Section, Whole

Component = Literal["vision_tower", "merger", "language_model"]


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) in place of training the weights."""

    rank: Whole = Field(0, description="Rank of an adapter; 0: no adapters.")
    alpha: Positive = Field(32.0, description="An adapter is scaled by alpha / rank.")
    dropout: Annotated[Float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of an adapter's inputs that is dropped in training."
    )
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="Last names of the linear layers that get an adapter.",
    )
    components: tuple[Component, ...] = Field(
        ("language_model",), description="Components in which layers are looked for."
    )
    send: Literal["merged", "adapter"] = Field(
        "adapter",
        description="What engines are given: adapters alone, or all weights with them merged, "
        "where bfloat16 rounds small changes away.",
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Adapters without layers."""
        if not self.target_modules:
            key = "model.lora.target_modules"
            yield Contradiction((key,), f"{key}: expected a layer's name")
        if not self.components:
            yield Contradiction(
                ("model.lora.components",),
                "model.lora.components: expected a component of the model",
            )


class ModelConfig(Section):
    """What is trained."""

    path: str = Field("", description="Folder of the Hugging Face checkpoint to start from.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Dtype of computation.")
    freeze: tuple[Component, ...] = Field((), description="Components that are not trained.")
    lora: LoraConfig = LoraConfig()

    def is_frozen(self, component: Component) -> bool:
        """Whether nothing of a component is trained, adapters included."""
        return component not in self.lora.components if self.lora.rank else component in self.freeze

    def contradictions(self) -> Iterator[Contradiction]:
        """Components that are frozen and get an adapter."""
        both = sorted(set(self.freeze) & set(self.lora.components))
        if self.lora.rank and both:
            yield Contradiction(
                ("model.freeze", "model.lora.components", "model.lora.rank"),
                f"model.lora.components and model.freeze both name {', '.join(both)}: with "
                "adapters all weights are frozen, and a component of model.freeze gets no adapter",
            )
