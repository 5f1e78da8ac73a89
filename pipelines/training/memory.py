"""An estimate of the memory that training needs, by a formula: no step is run.

Peak of one training process = the process itself + weights, gradients and AdamW's two moments (of
what Muon updates, one) + what the blocks keep of one micro batch for the backward pass. Workers
with resources.strategy = fsdp hold their shares of the matrices in blocks, and whole ones of
the blocks that compute; the one that writes a checkpoint has all of it in its memory. The factors
were fitted to measured peaks (VmHWM) of models of 0.2 to 20 million parameters;
tests/pipelines/training/test_memory.py requires them to be within 25 % of what child processes
measure. Used by the check of the cluster's memory and the cost estimate.
"""

from typing import TYPE_CHECKING

from dca import ModelConfig, registry

if TYPE_CHECKING:  # pydantic, which a machine that only checks its GPU need not have
    from pipelines.training.config import TrainingRun

MIB, GIB = 1 << 20, 1 << 30
PROCESS_BYTES = 435 * MIB
"""Of a worker without a model: Python, torch, Ray. Trials of a model of 7,000 parameters peaked at
595 MiB, the workers of its fit at 605, 136 of them PyTorch's compiler."""
COMPILER_BYTES = 136 * MIB
"""Of PyTorch's compiler, imported."""
SHARDING_BYTES = 42 * MIB
"""Of PyTorch's sharding, imported."""
STATE_COPIES = 4
"""Numbers held per parameter: weight, gradient, two moments."""
SAVED_COPIES = 3
"""Numbers of a checkpoint per parameter: weight and moments, besides the average if one is kept.
They are in memory as bytes for the file as well while it is written; and where weights are sharded,
whole beside the worker's part."""
MUON_COPIES, MUON_COPIES_ON_A_CPU = 3, 4
"""Numbers held per parameter of a matrix while Muon updates it, besides weight and momentum: a
processor without instructions for bfloat16 multiplies in float32."""
GATHERED_COPIES, SCATTERED_COPIES = 4, 2
"""Numbers held per parameter of one block's matrices where these are sharded: of a block and of the
next one as gathered and in the buffers that they came in; and of gradients, in float32, whole and
in the buffer that is scattered."""
ON_A_GPU = 1.25
"""Memory that is taken for granted per byte of the formula when a micro-batch is chosen: for the
formula's error, and what PyTorch's allocator leaves between tensors."""
EVAL_WINDOWS = 32
"""Windows of a batch in an evaluation, `evaluation.bits_per_byte`'s default."""


def peak_bytes(config: "TrainingRun", *, on_gpu: bool) -> int:
    """Largest memory of one worker in bytes: on a GPU only that of its tensors."""
    parameters, muon = config.model.parameter_count(), config.train.optimizer == "muon"
    sharded = _is_sharded(config)
    matrices = _matrix_numbers(config.model) if muon or sharded else 0
    own = -(-matrices // config.resources.min_workers) if sharded else matrices
    held = parameters - matrices + own
    moment = 4 * own if muon else 0
    state = STATE_COPIES * 4 * held - moment
    saving = SAVED_COPIES * 4 * held - moment
    evaluating = saving + _evaluation_bytes(config)
    updating = state + (MUON_COPIES if on_gpu else MUON_COPIES_ON_A_CPU) * moment
    averaged = config.train.ema_decay is not None
    if not on_gpu:
        whole = (SAVED_COPIES + averaged) * 4 * parameters - (4 * matrices if muon else 0)
        saving += (1 + sharded) * whole
    training = state + micro_tokens(config) * _token_bytes(config, on_gpu=on_gpu)
    if config.train.precision == "bfloat16":  # of every matrix a second one
        training += 2 * (parameters - matrices if sharded else parameters)
    if sharded:
        training += _gathered_bytes(config, matrices, on_gpu=on_gpu)
        evaluating += _gathered_bytes(config, matrices, on_gpu=on_gpu, gradients=False)
    averages = 4 * held if averaged else 0
    largest = max(training, updating, saving, evaluating)
    return averages + largest + (0 if on_gpu else _process_bytes(config))


def _matrix_numbers(model: ModelConfig) -> int:
    """Numbers in the matrices of blocks."""
    from pipelines.training.optimizer import matrix_work

    return matrix_work(model).numbers


def _gathered_bytes(
    config: "TrainingRun", matrices: int, *, on_gpu: bool, gradients: bool = True
) -> int:
    """Bytes of whole matrices, where each worker holds some rows: of the blocks that compute."""
    block = matrices / config.model.depth
    found = GATHERED_COPIES * _width(config, on_gpu=on_gpu) * block
    if gradients:
        found += SCATTERED_COPIES * 4 * block
        if micro_tokens(config) * config.resources.min_workers < config.train.batch_tokens:
            found += 4 * matrices  # whole gradients, until the last micro-batch
    return round(found)


def _process_bytes(config: "TrainingRun") -> int:
    """Of a worker without a model; activation checkpointing imports PyTorch's compiler as well."""
    compiler = config.train.compile or config.train.activation_checkpointing
    found = PROCESS_BYTES + (COMPILER_BYTES if compiler else 0)
    return found + (SHARDING_BYTES if _is_sharded(config) else 0)


def _is_sharded(config: "TrainingRun") -> bool:
    """Whether the workers share the weights."""
    return config.resources.strategy == "fsdp" and config.resources.min_workers > 1


def _token_bytes(config: "TrainingRun", *, on_gpu: bool) -> int:
    """Bytes that the forward pass keeps of one token, and of the logits with their gradient."""
    model = config.model
    shared = 1 - model.groups / model.heads  # of keys, turned and not, and of values
    kept = registry.residual[model.residual].kept(model)
    block = 18 + model.qk_norm - 3 * shared + _hidden(model)
    blocks = model.depth * block + kept
    if config.train.activation_checkpointing:  # one block at a time, and the inputs of the others
        blocks = block + kept / model.depth + model.depth * 6 + kept // 2
    logits = 4 if model.logit_softcap is None else 5
    return _width(config, on_gpu=on_gpu) * round(model.dim * blocks) + 4 * logits * model.vocab


def _width(config: "TrainingRun", *, on_gpu: bool) -> int:
    """Bytes of a number in matrix products."""
    half = {"auto": on_gpu, "float32": False, "bfloat16": True}[config.train.precision]
    return 2 if half else 4


def _hidden(model: ModelConfig) -> float:
    """Hidden features, before, within and after the activation, in multiples of dim."""
    return (4 if model.activation == "swiglu" else 2) * model.ff_dim / model.dim


def _evaluation_bytes(config: "TrainingRun") -> int:
    """Bytes of an evaluation's batch: it keeps the stack's entries, no activations."""
    model, train = config.model, config.train
    windows = min(EVAL_WINDOWS, max(1, (train.eval_tokens or train.seq_len * 32) // train.seq_len))
    live = registry.residual[model.residual].state_rows(model) + 8 + _hidden(model)
    return 4 * windows * train.seq_len * (round(model.dim * live) + 3 * model.vocab)


def micro_tokens_that_fit(config: "TrainingRun", there: int) -> int:
    """Bytes of the largest forward pass with which a worker fits that many bytes of a GPU.

    The batch, or a divisor of it; where nothing fits, the largest that needs no more than one
    sequence does.
    """
    train = config.train
    sequences = train.batch_tokens // train.seq_len
    share = sequences // config.resources.min_workers
    least = _on_a_gpu(config, train.seq_len)
    if _on_a_gpu(config, None) <= max(there, least):
        return train.batch_tokens
    sizes = (train.seq_len * n for n in range(share, 0, -1) if sequences % n == 0)
    return next(size for size in sizes if _on_a_gpu(config, size) <= max(there, least))


def _on_a_gpu(config: "TrainingRun", micro_batch_tokens: int | None) -> float:
    """Bytes that are taken for granted for a worker with such forward passes."""
    changed = config.replace({"train.micro_batch_tokens": micro_batch_tokens})
    return ON_A_GPU * peak_bytes(changed, on_gpu=True)


def micro_tokens(config: "TrainingRun") -> int:
    """Bytes of one forward pass of a worker, of those with the largest share."""
    train = config.train
    share = train.seq_len * -(-train.batch_tokens // train.seq_len // config.resources.min_workers)
    return min(share, train.micro_batch_tokens or share)
