"""An estimate of the memory that training needs, by a formula: no step is run.

Peak of one training process = the process itself + weights, gradients and AdamW's two moments (of
what Muon updates, one) + what the blocks keep of one micro batch for the backward pass. The factors
were fitted to measured peaks (VmHWM) of models of 0.2 to 20 million parameters;
tests/pipelines/training/test_memory.py requires them to be within 25 % of what child processes
measure. Used by the check of the cluster's memory and the cost estimate.
"""

from dca import ModelConfig, registry
from pipelines.training.config import TrainingRun

MIB, GIB = 1 << 20, 1 << 30
PROCESS_BYTES = 435 * MIB
"""Of a worker without a model: Python, torch, Ray. Trials of a model of 7,000 parameters peaked at
595 MiB, the workers of its fit at 605, 136 of them PyTorch's compiler."""
COMPILER_BYTES = 136 * MIB
"""Of PyTorch's compiler, imported."""
STATE_COPIES = 4
"""Numbers held per parameter: weight, gradient, two moments."""
SAVED_COPIES = 6
"""The same while a checkpoint is written: weight and moments, and each as bytes for the file."""
MUON_COPIES = 3
"""Numbers held per parameter of a matrix while Muon updates it, besides weight and momentum."""
EVAL_WINDOWS = 32
"""Windows of a batch in an evaluation, `evaluation.bits_per_byte`'s default."""


def peak_bytes(config: TrainingRun, *, on_gpu: bool) -> int:
    """Largest memory of one worker in bytes: on a GPU only that of its tensors."""
    parameters = config.model.parameter_count()
    tokens = micro_tokens(config)
    averages = 4 * parameters if config.train.ema_decay else 0
    state = STATE_COPIES * 4 * parameters
    saving = (3 if on_gpu else SAVED_COPIES) * 4 * parameters
    evaluating = 3 * 4 * parameters + _evaluation_bytes(config)
    updating = 0
    if config.train.optimizer == "muon":
        from pipelines.training.optimizer import matrix_work

        moment = 4 * matrix_work(config.model).numbers
        state, evaluating = state - moment, evaluating - moment
        saving -= moment if on_gpu else 2 * moment
        updating = state + MUON_COPIES * moment
    if config.train.precision == "bfloat16":  # of every matrix a second one
        state += 2 * parameters
    training = state + tokens * _token_bytes(config, on_gpu=on_gpu)
    largest = max(training, updating, saving, evaluating)
    return averages + largest + (0 if on_gpu else _process_bytes(config))


def _process_bytes(config: TrainingRun) -> int:
    """Of a worker without a model; activation checkpointing imports PyTorch's compiler as well."""
    compiler = config.train.compile or config.train.activation_checkpointing
    return PROCESS_BYTES + (COMPILER_BYTES if compiler else 0)


def _token_bytes(config: TrainingRun, *, on_gpu: bool) -> int:
    """Bytes that the forward pass keeps of one token, and of the logits with their gradient."""
    model = config.model
    shared = 1 - model.groups / model.heads  # of keys, turned and not, and of values
    kept = registry.residual[model.residual].kept(model)
    block = 18 + model.qk_norm - 3 * shared + _hidden(model)
    blocks = model.depth * block + kept
    if config.train.activation_checkpointing:  # one block at a time, and the inputs of the others
        blocks = block + kept / model.depth + model.depth * 6 + kept // 2
    half = {"auto": on_gpu, "float32": False, "bfloat16": True}[config.train.precision]
    width = 2 if half else 4
    logits = 4 if model.logit_softcap is None else 5
    return width * round(model.dim * blocks) + 4 * logits * model.vocab


def _hidden(model: ModelConfig) -> float:
    """Hidden features, before, within and after the activation, in multiples of dim."""
    return (4 if model.activation == "swiglu" else 2) * model.ff_dim / model.dim


def _evaluation_bytes(config: TrainingRun) -> int:
    """Bytes of an evaluation's batch: it keeps the stack's entries, no activations."""
    model, train = config.model, config.train
    windows = min(EVAL_WINDOWS, max(1, (train.eval_tokens or train.seq_len * 32) // train.seq_len))
    live = registry.residual[model.residual].state_rows(model) + 8 + _hidden(model)
    return 4 * windows * train.seq_len * (round(model.dim * live) + 3 * model.vocab)


def micro_tokens(config: TrainingRun) -> int:
    """Bytes of one forward pass of a worker."""
    share = config.train.batch_tokens // config.resources.min_workers
    return min(share, config.train.micro_batch_tokens or share)
