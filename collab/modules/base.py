"""`PolicyModule`, the base of all algorithms: turns scored groups into optimizer steps.

A subclass chooses which replies of a group it is trained on (`examples`) and computes their loss (`loss`).

Optimisation is manual: an optimizer step may have any number of micro-batches, and a rollout several optimizer steps.
The groups of a rollout are split into `num_minibatches` minibatches, and `epochs` passes are made over the same
minibatches. The loss of a step is the sum over the units (pairs, tokens or sequences) of all its micro-batches, divided
by the number of units in the whole step, on all processes. The gradients of micro-batches and of processes are
therefore summed.

Groups that an older policy sampled (`max_staleness`) have two log-probs beside the current one: that of the policy that
sampled, and the proximal one, of the policy before the rollout's first update. Ratios are clipped against the second,
and each token is weighted by the truncated ratio of the second to the first (`losses.importance_weights`).

With `target_kl`, an optimizer step that moves the policy too far is shortened, as by the line search of TRPO (Schulman
et al. 2015): the weights go a part of the way. The learning rate is then a maximum, and each model gets the one that it
bears. Spinning Up and TRL end the passes over a rollout instead, after the step that was too large.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import lightning as L
import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from collab.config.algorithms import AlgorithmConfig
from collab.conversation import Candidate, Group, Reply
from collab.lm.attention import in_blocks
from collab.lm.inner import inner_of
from collab.modules.losses import MAX_WEIGHT, importance_weights, kl_estimates
from collab.modules.packing import PackedBatch, idle_batch, micro_batches, pack, packed_length
from collab.modules.policy import Policy, PolicyOutput
from collab.modules.sharding import Sharding, is_spread, shard
from collab.util.errors import BadInput

_FAR = 10  # a step that is longer than so many times `target_kl` is measured again when it was shortened,
_SHORTENINGS = 6  # and shortened so many times


@dataclass(frozen=True)
class Example:
    """Replies to one context that are trained on together; in SFT, replies of one conversation.

    Attributes:
        replies: Packed in one row, so their histories are as `packing.pack` wants them.
        weights: One number per reply if the algorithm needs it: an advantage or a reward.
        contexts: Number of contexts that the replies answer.
        proximal: [n] log-probs of all n tokens by the policy before the rollout's first update. None if they are not
            needed: nothing is stale, or the rollout has one update, whose own log-probs they are.
    """

    replies: tuple[Reply, ...]
    weights: tuple[float, ...] = ()
    contexts: int = 1
    proximal: torch.Tensor | None = None


class Step(NamedTuple):
    """An optimizer step.

    Attributes:
        norm: Norm of the gradient before clipping.
        kl: How far the whole step would have moved the policy, in nats per token; nan without `target_kl`.
        scale: The part of it that was made.
    """

    norm: float
    kl: float = math.nan
    scale: float = 1.0


def mr_of(candidate: Candidate) -> float:
    """The candidate's MR; every candidate of a group has one."""
    assert candidate.mr is not None, "a group has no candidates without MR"
    return candidate.mr


class PolicyModule(L.LightningModule):
    """A policy that learns from scored groups.

    Args:
        config: The algorithm's fields.
        load: Loads the causal LM; called once, in `configure_model`.
        tokenizer: Its tokenizer, for export.
        temperature: Sampling temperature of the candidates.
        max_steps: Number of rollouts of the run, for the schedule.
        sharding: How the policy is sharded; None if each process has all of it.
        max_staleness: How many rollouts the policy may have learned from since a group was sampled
            (`rollout.max_staleness`).
    """

    needs_reference = True  # False in evaluation: full weights then need no frozen copy
    whole_conversations = False  # a step learns from stored conversations, not from contexts one by one
    has_values = False  # a value head on the policy's trunk: trained and in checkpoints, not in an export

    def __init__(
        self,
        config: Any,
        load: Callable[[], Any],
        tokenizer: Any,
        temperature: float,
        max_steps: int,
        sharding: Sharding | None = None,
        max_staleness: int = 0,
    ) -> None:
        super().__init__()
        self.config: Any = config
        self.tokenizer = tokenizer
        self.temperature, self.max_steps, self.sharding = temperature, max_steps, sharding
        self.max_staleness = max_staleness
        self.policy: Policy | None = None
        self._load = load
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold trainable weights only
        self._scale = 1.0  # the part of the last step that `target_kl` left

    # --- what an algorithm says ----------------------------------------------------------------------------------

    @property
    def loss_needs_reference(self) -> bool:
        """Whether the loss reads `ref_logprobs`. If not, one example per step gets them, for the logged KL."""
        return True

    @abstractmethod
    def examples(self, groups: Sequence[Group]) -> list[Example]:
        """The examples to train on, without groups that teach nothing. Uses neither model nor trainer."""

    def advantages(self, group: Group) -> list[float] | None:
        """The advantage of each candidate, for the transcripts.

        None if the group teaches nothing, or if the algorithm has no advantage of a whole reply.
        """
        return None

    def left_out(self, groups: Sequence[Group]) -> dict[str, int]:
        """How many of `groups` a setting leaves out, for the log: name -> count."""
        return {}

    def check_data(self, groups: Sequence[Group]) -> str:
        """Check all groups of `config.data` before a model is loaded.

        Returns:
            A line for the user: how many groups are trained on and how many are left out.

        Raises:
            BadInput: No group can be trained on.
        """
        kept, config = len(self.examples(groups)), self.config
        if not kept:
            raise BadInput(
                f"algorithm.data={config.data} has nothing for {config.name} to learn from in its {len(groups)} "
                "groups. Take other data."
            )
        return f"{kept} of {len(groups)} groups are learned from"

    def prepare(self, examples: list[Example]) -> list[Example]:
        """Compute what a rollout needs once, with the current policy, before the first update.

        Here: the proximal log-probs, where there are several updates.
        """
        if not self.max_staleness or self.config.num_minibatches * self.config.epochs == 1:
            return examples
        found: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for indices, batch in self.passes(examples):
                assert self.policy is not None
                sizes = [sum(len(reply.token_ids) for reply in examples[index].replies) for index in indices]
                logprobs = self.policy(batch).logprobs
                found |= zip(indices, logprobs.split(sizes), strict=True) if indices else ()
        return [replace(example, proximal=found[index]) for index, example in enumerate(examples)]

    def proximal(self, examples: Sequence[Example], batch: PackedBatch, output: PolicyOutput) -> torch.Tensor:
        """[N] log-probs that the probability ratio of an update is taken to: those before the rollout's first update.

        If nothing is stale, they are those of sampling.
        """
        if not self.max_staleness:
            return batch.sampled_logprobs
        known = [example.proximal for example in examples if example.proximal is not None]
        return torch.cat(known) if known else output.logprobs.detach()

    def weighted(self, losses: torch.Tensor, batch: PackedBatch, proximal: torch.Tensor) -> torch.Tensor:
        """[N] losses of tokens, each times its importance weight if an older policy may have sampled it."""
        return losses * importance_weights(proximal, batch.sampled_logprobs) if self.max_staleness else losses

    @abstractmethod
    def units(self, example: Example) -> int:
        """Number of units (pairs, tokens or sequences) of an example in the step's mean."""

    @abstractmethod
    def loss(
        self, examples: Sequence[Example], batch: PackedBatch, output: PolicyOutput, ref_logprobs: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum of the losses of all units in the micro-batch, a scalar.

        `ref_logprobs` is not None if `loss_needs_reference`.
        """

    # --- the model -----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        # The first process loads the weights and sends the others their shards.
        load = self.sharding.empty if self.sharding is not None and self.global_rank > 0 else self._load
        self.policy = Policy(load(), self.needs_reference, self.has_values, self.config.lora_dropout)
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
        checkpoint["step_scale"] = self._scale

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._scale = checkpoint["step_scale"]

    # --- one step ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        assert self.policy is not None and batch.groups is not None
        if isinstance(self.trainer.model, DistributedDataParallel):
            # DDP would average after every backward pass, and wait for ranks with fewer micro-batches. `_update` sums
            # gradients once per step instead. Lightning sets this flag again after every step.
            self.trainer.model.require_backward_grad_sync = False
        names = ("loss", "kl", "kl_tokens", "entropy", "tokens", "gap", "gap_tokens", "truncated")
        sums = dict.fromkeys(names, 0.0)
        steps: list[Step] = []
        optimizer: Any = self.optimizers()
        rate = optimizer.param_groups[0]["lr"]
        # A minibatch is a run of neighbouring groups, so the number of ranks does not change which groups are in it.
        count = self.config.num_minibatches
        cuts = [len(batch.groups) * number // count for number in range(count + 1)]
        shares = [self.examples(batch.groups[start:end]) for start, end in itertools.pairwise(cuts)]
        examples = self.prepare([example for share in shares for example in share])
        remaining = iter(examples)
        minibatches = [list(itertools.islice(remaining, len(share))) for share in shares]
        self.policy.train()
        for minibatch in minibatches * self.config.epochs:
            total = over_ranks(self.trainer, [sum(map(self.units, minibatch))])[0]
            if total:
                steps.append(self._update(minibatch, total, not steps, sums))
            else:
                optimizer.zero_grad()
                # Without gradients this changes nothing. torch warns if the schedule steps before the optimizer.
                optimizer.optimizer.step()
            # The schedule follows the run: it also advances at minibatches that had nothing to learn from.
            self.lr_schedulers().step()  # type: ignore[union-attr]
        self.policy.eval()
        left_out = self.left_out(batch.groups)
        compared = sum(example.contexts for example in examples)
        ours = [*sums.values(), compared, len(batch.groups), *left_out.values()]
        loss, kl, kl_tokens, entropy, tokens, gap, gap_tokens, truncated, taught, groups, *counts = over_ranks(
            self.trainer, ours
        )
        updates = count * self.config.epochs
        # Every step logs every name: Lightning would otherwise repeat the last value as if it were new.
        self._log(
            loss=loss / updates,
            kl=kl / kl_tokens if kl_tokens else math.nan,
            entropy=entropy / tokens if tokens else math.nan,
            logprob_gap=gap / gap_tokens if gap_tokens else math.nan,
            grad_norm=sum(step.norm for step in steps) / updates,
            lr=rate,  # of the first update
            groups_without_spread=1 - taught / groups if groups else math.nan,
            **(_bounds(steps) if self.config.target_kl else {}),
            **({"truncated_share": truncated / gap_tokens if gap_tokens else math.nan} if self.max_staleness else {}),
            **dict(zip(left_out, counts, strict=True)),
        )

    def _update(self, examples: Sequence[Example], total: float, first: bool, sums: dict[str, float]) -> Step:
        """One optimizer step on the mean over the `total` units of all ranks.

        Args:
            examples: This rank's examples of the minibatch.
            total: Number of units, on all ranks.
            first: This is the rollout's first update; if nothing is stale, the weights are those that sampled it.
            sums: For the log, this rank's sums are added here: its share of the loss; the KL, the entropy and (first
                update only) the distance from the sampler's log-probs to ours, each with its number of tokens; the
                number of those tokens whose importance weight was truncated.
        """
        assert self.policy is not None
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        sizes = [sum(len(reply.token_ids) for reply in example.replies) for example in examples]
        probe, before = self._probe(sizes), dict[int, torch.Tensor]()
        for number, (indices, packed) in enumerate(self.passes(examples)):
            ref_logprobs = None
            if self.loss_needs_reference or (first and number == 0):
                read = packed
                if indices and not self.loss_needs_reference:
                    read = pack([examples[indices[0]].replies], self.temperature).to(self.device)
                with torch.no_grad():
                    ref_logprobs = self.policy(read, reference=True).logprobs
            output: PolicyOutput = self.policy(packed)
            if not indices:
                # A backward pass without effect, to keep step with the other processes.
                learning = [part for part in output if part is not None and part.requires_grad]
                self.manual_backward(0 * torch.cat(learning).sum())
                continue
            loss = self.loss([examples[index] for index in indices], packed, output, ref_logprobs) / total
            self.manual_backward(loss)
            count, logprobs = len(packed.targets), output.logprobs.detach()
            parts = zip(indices, logprobs.split([sizes[index] for index in indices]), strict=True)
            before |= {index: part for index, part in parts if index in probe}
            sums["loss"] += loss.item()
            sums["entropy"] += output.entropy.sum().item()
            sums["tokens"] += count
            if ref_logprobs is not None:
                sums["kl"] += kl_estimates(logprobs[: len(ref_logprobs)], ref_logprobs).sum().item()
                sums["kl_tokens"] += len(ref_logprobs)
            if first and len(packed.sampled_logprobs):  # stored conversations have none
                sums["gap"] += (logprobs - packed.sampled_logprobs).abs().sum().item()
                sums["gap_tokens"] += count
                sums["truncated"] += (logprobs - packed.sampled_logprobs > math.log(MAX_WEIGHT)).sum().item()
        return self._step([examples[index].replies for index in before], [*before.values()])

    def _step(self, probe: Sequence[Sequence[Reply]], logprobs: Sequence[torch.Tensor]) -> Step:
        """Sum the gradients over ranks and make the step; with `target_kl`, measure it and shorten it."""
        optimizer: Any = self.optimizers()
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if isinstance(self.trainer.model, DistributedDataParallel):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.distributed.all_reduce(parameter.grad)
        total = clip_grad_norm_(trained, self.config.max_grad_norm or math.inf)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if not self.config.target_kl:
            optimizer.step()
            return Step(norm)
        before = [parameter.detach().clone() for parameter in trained]
        optimizer.step()

        def shorten(part: float) -> None:
            with torch.no_grad():
                for parameter, old in zip(trained, before, strict=True):
                    parameter.lerp_(old, 1 - part)

        target, scale = self.config.target_kl, min(1.0, 2 * self._scale)  # the steps of a run are alike
        shorten(scale)
        kl = (moved := self._moved(probe, logprobs)) / scale**2
        for _ in range(_SHORTENINGS):
            if moved <= target:
                break
            part = math.sqrt(target / moved)  # the KL of a short step grows with its square
            shorten(part)
            scale *= part
            if moved < _FAR * target:
                break
            moved = self._moved(probe, logprobs)
        self._scale = scale
        return Step(norm, kl, scale)

    def _probe(self, sizes: Sequence[int]) -> set[int]:
        """What a step is measured on: this rank's examples with as many tokens as the longest one of all ranks.

        It is one, as a rule. So measuring costs little, and the number of ranks does not change what is measured.
        """
        if not self.config.target_kl:
            return set()
        longest = over_ranks(self.trainer, [max(sizes, default=0)], "max")[0]
        return {index for index, size in enumerate(sizes) if size == longest}

    def _moved(self, groups: Sequence[Sequence[Reply]], logprobs: Sequence[torch.Tensor]) -> float:
        """KL of the policy now from the one that gave these log-probs, per token, over all ranks.

        Half the mean square of the log-ratios: k2 of Schulman's note, which single tokens spoil less than k3.
        """
        assert self.policy is not None
        squares, count = 0.0, 0
        if groups or self.sharding is not None:
            packed = pack(groups, self.temperature) if groups else idle_batch()
            with torch.no_grad():
                now = self.policy(packed.to(self.device)).logprobs
            if groups:
                squares, count = (now - torch.cat([*logprobs])).square().sum().item() / 2, len(now)
            if is_spread(self.policy):
                self.policy.reshard()  # type: ignore[operator]  # the forward has left weights gathered
        total, tokens = over_ranks(self.trainer, [squares, float(count)])
        return total / tokens

    def passes(self, examples: Sequence[Example]) -> Iterator[tuple[list[int], PackedBatch]]:
        """Micro-batches: indices into `examples`, each once, and these examples packed.

        With sharded weights every process must make the same number of passes. A process with fewer micro-batches
        ends with passes that have no indices and an idle batch.
        """
        lengths = [packed_length(example.replies) for example in examples]
        assert self.policy is not None
        blocks = in_blocks(inner_of(self.policy.lm), self.device, max(lengths, default=0))
        batches = micro_batches(lengths, self.config.tokens_per_micro_batch if blocks else 1)
        if self.sharding is not None:
            most = over_ranks(self.trainer, [len(batches)], "max")[0]
            batches += [[]] * (int(most) - len(batches))
        for indices in batches:
            replies = [examples[index].replies for index in indices]
            yield indices, (pack(replies, self.temperature) if indices else idle_batch()).to(self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to do: the rollout callback has played and scored the batch."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As `validation_step`."""

    def _log(self, **values: float) -> None:
        self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=1)


def _bounds(steps: Sequence[Step]) -> dict[str, float]:
    """For the log, means over the steps of a rollout."""
    count = len(steps) or math.nan
    return {"step_kl": sum(step.kl for step in steps) / count, "step_scale": sum(step.scale for step in steps) / count}


def over_ranks(trainer: L.Trainer, values: Sequence[float], operation: str = "sum") -> list[float]:
    """Each value's sum (or "max") over all processes, which must all call it."""
    ours = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    reduced: torch.Tensor = trainer.strategy.reduce(ours, reduce_op=operation)
    return reduced.tolist()


def learning_rate_scale(schedule: str, warmup_steps: int, max_steps: int) -> Callable[[int], float]:
    """Step -> factor of the peak rate: linear from 1/warmup_steps to 1, then constant, or cosine or linear to 0."""

    def scale(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        if schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1 - progress if schedule == "linear" else 1.0

    return scale
