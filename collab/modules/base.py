"""`PolicyModule`: what all algorithms share. It receives scored groups and makes optimizer steps of them.

A subclass says which replies of a group it learns from (`examples`) and what their loss is (`loss`). Neither users nor
judges nor HTTP are known here.

Optimisation is manual so that a step may hold any number of micro-batches, and a rollout several steps: `epochs` passes
over it, in each of which its groups are dealt out to `num_minibatches` minibatches, the same ones in every pass. A
step's loss is a sum over units (pairs, tokens or sequences) of all its micro-batches, divided by the number of units in
the whole step, on all processes; the gradients of micro-batches and of processes then simply add up.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from collab.config.algorithms import AlgorithmConfig
from collab.conversation import Candidate, Group, Reply
from collab.lm.attention import in_blocks
from collab.lm.inner import inner_of
from collab.modules.losses import kl_estimates
from collab.modules.packing import PackedBatch, idle_batch, micro_batches, pack, packed_length
from collab.modules.policy import Policy, PolicyOutput
from collab.modules.sharding import Sharding, is_sharded, shard
from collab.util.errors import BadInput


@dataclass(frozen=True)
class Example:
    """Replies to one context that are learned from together.

    Attributes:
        replies: Share their `prompt_ids`.
        weights: A number for each, where the algorithm has one: its advantage, or its reward.
    """

    replies: tuple[Reply, ...]
    weights: tuple[float, ...] = ()


def mr_of(candidate: Candidate) -> float:
    """Its MR, which every candidate of a group has."""
    assert candidate.mr is not None, "candidates without MR are no part of a group"
    return candidate.mr


class PolicyModule(L.LightningModule):
    """A policy that learns from scored groups.

    Args:
        config: The algorithm's fields.
        load: Makes the causal LM; called once, in `configure_model`.
        tokenizer: Its tokenizer, kept for export.
        temperature: Temperature of the distribution that candidates are sampled from.
        max_steps: Rollouts of the run, for the schedule.
        sharding: How the policy is spread over the processes; None where each has all of it.
    """

    needs_reference = True  # set to False where nothing is trained: full weights then have no frozen copy
    has_values = False  # a value head on the policy's trunk: trained and kept in checkpoints, no part of an export

    def __init__(
        self,
        config: Any,
        load: Callable[[], Any],
        tokenizer: Any,
        temperature: float,
        max_steps: int,
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__()
        self.config: Any = config
        self.tokenizer = tokenizer
        self.temperature, self.max_steps, self.sharding = temperature, max_steps, sharding
        self.policy: Policy | None = None
        self._load = load
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold trainable weights only

    # --- what an algorithm says ----------------------------------------------------------------------------------

    @property
    def loss_needs_reference(self) -> bool:
        """Whether the loss reads `ref_logprobs`; else the reference reads one micro-batch a step, for the logged KL."""
        return True

    @abstractmethod
    def examples(self, groups: Sequence[Group]) -> list[Example]:
        """What to learn from; groups that teach nothing are left out. Asks neither model nor trainer."""

    def left_out(self, groups: Sequence[Group]) -> dict[str, int]:
        """How many of `groups` a field of the config keeps out, for the log: name -> count."""
        return {}

    def check_data(self, groups: Sequence[Group]) -> str:
        """Hold all groups of `config.data` against what the algorithm needs, before a model is loaded.

        Returns:
            A line for the user: how much there is to learn from, and how much is left out.

        Raises:
            BadInput: There is nothing to learn from.
        """
        kept, config = len(self.examples(groups)), self.config
        if not kept:
            raise BadInput(
                f"algorithm.data={config.data} has nothing for {config.name} to learn from in its {len(groups)} "
                "groups. Take other data."
            )
        return f"{kept} of {len(groups)} groups are learned from"

    def prepare(self, examples: list[Example]) -> list[Example]:
        """What is computed once for a rollout, with the policy that sampled it, before the first update."""
        return examples

    @abstractmethod
    def units(self, example: Example) -> int:
        """By how many units (pairs, tokens) an example counts in the step's mean."""

    @abstractmethod
    def loss(
        self, examples: Sequence[Example], batch: PackedBatch, output: PolicyOutput, ref_logprobs: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum of the losses of all units in the micro-batch, a scalar.

        `ref_logprobs` is there wherever `loss_needs_reference`.
        """

    # --- the model -----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        # Of sharded weights the first process gives the others their parts.
        load = self.sharding.empty if self.sharding is not None and self.global_rank > 0 else self._load
        self.policy = Policy(load(), self.needs_reference, self.has_values)
        if self.sharding is not None:
            shard(self.policy, self.sharding, self.trainer.strategy.root_device)

    def configure_optimizers(self) -> Any:
        config: AlgorithmConfig = self.config
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        updates = self.max_steps * config.num_minibatches * config.epochs
        scale = learning_rate_scale(config.schedule, config.warmup_steps, updates)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, scale)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trainable}

    # --- one step ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        assert self.policy is not None and batch.groups is not None
        if isinstance(self.trainer.model, DistributedDataParallel):
            # DDP would average after every backward pass, and wait for ranks that have fewer micro-batches than others.
            # Gradients are summed once a step instead. Lightning sets this flag anew after every step.
            self.trainer.model.require_backward_grad_sync = False
        found, norms = [0.0] * 7, []
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        # Neighbours go together, so that an update has the same groups, of all ranks, whatever their number.
        updates = self.config.num_minibatches
        cuts = [len(batch.groups) * number // updates for number in range(updates + 1)]
        shares = [self.examples(batch.groups[start:end]) for start, end in itertools.pairwise(cuts)]
        examples = self.prepare([example for share in shares for example in share])
        waiting = iter(examples)
        minibatches = [list(itertools.islice(waiting, len(share))) for share in shares]
        self.policy.train()
        first = True
        for minibatch in minibatches * self.config.epochs:
            total, norm = over_ranks(self.trainer, [sum(map(self.units, minibatch))])[0], 0.0
            if total:
                sums, norm = self._update(minibatch, total, first)
                found = [a + b for a, b in zip(found, sums, strict=True)]
                first = False
            norms.append(norm)
        self.policy.eval()
        left_out = self.left_out(batch.groups)
        counts = over_ranks(self.trainer, [*found, len(examples), len(batch.groups), *left_out.values()])
        loss, kl, kl_tokens, entropy, tokens, gap, gap_tokens, taught, groups = counts[:9]
        # Every step logs every name: Lightning would otherwise repeat the last value as if it were new.
        self._log(
            loss=loss / len(norms),
            kl=kl / kl_tokens if kl_tokens else math.nan,
            entropy=entropy / tokens if tokens else math.nan,
            logprob_gap=gap / gap_tokens if gap_tokens else math.nan,
            grad_norm=sum(norms) / len(norms),
            lr=rate,  # of the first update
            groups_without_spread=1 - taught / groups if groups else math.nan,
            **dict(zip(left_out, counts[9:], strict=True)),
        )

    def _update(self, examples: Sequence[Example], total: float, first: bool) -> tuple[list[float], float]:
        """One optimizer step on the mean over all ranks' `total` units; `first`: of this rollout.

        Returns:
            For the log: this rank's sums of the loss (its share of the step's mean), of the KL and the tokens it was
            read off, of the entropy and the tokens, and (first update only: the weights are those that sampled) of
            the distances from the sampler's log-probs to ours and the tokens; then the norm of the gradient.
        """
        assert self.policy is not None
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss_sum = kl = kl_tokens = entropy = tokens = gap = gap_tokens = 0.0
        for number, (indices, packed) in enumerate(self.passes(examples)):
            ref_logprobs = None
            if self.loss_needs_reference or (first and number == 0):
                with torch.no_grad():
                    ref_logprobs = self.policy(packed, reference=True).logprobs
            output: PolicyOutput = self.policy(packed)
            if not indices:
                learning = [part for part in output if part is not None and part.requires_grad]
                self.manual_backward(0 * torch.cat(learning).sum())
                continue
            loss = self.loss([examples[index] for index in indices], packed, output, ref_logprobs) / total
            self.manual_backward(loss)
            loss_sum += loss.item()
            if ref_logprobs is not None:
                kl += kl_estimates(output.logprobs.detach(), ref_logprobs).sum().item()
                kl_tokens += len(packed.targets)
            entropy += output.entropy.sum().item()
            tokens += len(packed.targets)
            if first and len(packed.sampled_logprobs):  # conversations that are read from files have none
                gap += (output.logprobs.detach() - packed.sampled_logprobs).abs().sum().item()
                gap_tokens += len(packed.targets)
        self._sum_gradients()
        limit = self.config.max_grad_norm or math.inf
        norm = clip_grad_norm_([p for p in self.parameters() if p.requires_grad], limit)
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]
        norm = norm.full_tensor() if is_sharded(norm) else norm
        return [loss_sum, kl, kl_tokens, entropy, tokens, gap, gap_tokens], float(norm)

    def passes(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], PackedBatch]]:
        """Micro-batches: indices into `examples`, each once, and these examples packed.

        A pass over sharded weights takes all processes, so that each has as many of them then: those that it has no
        examples for come at the end, with no indices and a batch that says nothing.
        """
        lengths = [packed_length(example.replies) for example in examples]
        assert self.policy is not None
        blocks = in_blocks(inner_of(self.policy.lm), self.device, max(lengths, default=0))
        found = micro_batches(lengths, self.config.tokens_per_micro_batch if blocks else 1)
        if self.sharding is not None:
            count = torch.tensor(len(found), device=self.device)
            torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
            found += [[]] * (int(count) - len(found))
        for indices in found:
            replies = [examples[index].replies for index in indices]
            yield indices, (pack(replies, self.temperature) if indices else idle_batch()).to(self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The rollout callback has played and scored the batch; there is nothing to compute on the weights."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`."""

    def _sum_gradients(self) -> None:
        """Add up the gradients of all ranks: each divided its losses by the units of the whole step already."""
        if not isinstance(self.trainer.model, DistributedDataParallel):
            return
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.distributed.all_reduce(parameter.grad)

    def _log(self, **values: float) -> None:
        self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=1)


def over_ranks(trainer: L.Trainer, values: Sequence[float], operation: str = "sum") -> list[float]:
    """Each value's sum (or "max") over all processes, which have to ask together."""
    ours = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    found: torch.Tensor = trainer.strategy.reduce(ours, reduce_op=operation)
    return found.tolist()


def learning_rate_scale(schedule: str, warmup_steps: int, max_steps: int) -> Callable[[int], float]:
    """Step -> factor of the peak rate: linear from 1/warmup_steps up, then constant, cosine or linear down to 0."""

    def scale(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress if schedule == "linear" else 1.0

    return scale
