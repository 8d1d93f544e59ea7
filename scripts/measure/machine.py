"""What is measured: a machine of N devices, a binary, a model; and the sizes that suit them."""
import dataclasses
import json
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Attention of 7B's proportions, so that four ranks of a layer and four stages are possible.
SMALL_MODEL = dict(
    architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", hidden_size=448, intermediate_size=640,
    num_hidden_layers=4, num_attention_heads=28, num_key_value_heads=4, head_dim=16, vocab_size=1088,
    max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False, torch_dtype="bfloat16")
TOKENIZER = ROOT / "crates/text/tests/data/tiny_tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Scale:
    """Lengths and numbers of requests: the issue's on GPUs, small ones on a CPU."""

    context: int
    matrix: tuple
    matrix_out: int
    batches: tuple
    decode: tuple
    prompts: tuple
    layout_prompts: tuple
    crowd: str
    most_input: int
    most_output: int
    repeats: int


GPU_SCALE = Scale(
    context=131_072, matrix=(4096, 16_384, 65_536, 130_560), matrix_out=512, batches=(1, 8, 64, 256), decode=(268, 64),
    prompts=(4096, 16_384, 65_536, 130_000), layout_prompts=(4096, 16_384), crowd="512x1024+256", most_input=2000,
    most_output=200, repeats=3)
CPU_SCALE = Scale(
    context=2048, matrix=(32, 64, 128, 256), matrix_out=8, batches=(1, 4), decode=(20, 24), prompts=(64, 256),
    layout_prompts=(32, 64), crowd="12x32+8", most_input=60, most_output=20, repeats=1)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Everything a command line is made from. `count` is of GPUs, or of ranks by threads on a CPU."""

    binary: str
    python: str
    count: int
    on_cpu: bool
    model: str
    tokenizer: str
    folder: pathlib.Path
    # As behind `plan --device-memory`; empty where nobody tells.
    device_memory: str = ""

    @property
    def scale(self):
        return CPU_SCALE if self.on_cpu else GPU_SCALE

    def model_flags(self, dtype):
        flags = ["--model", self.model, "--device", "cpu" if self.on_cpu else "gpu",
                 "--measurements", str(self.folder / "measurements"), "--dtype", dict(bf16="bfloat16", fp16="half")[dtype]]
        if self.model.endswith(".json"):
            flags += ["--load-format", "dummy"]
        if self.tokenizer:
            flags += ["--tokenizer", self.tokenizer]
        if self.on_cpu:
            flags += ["--threads", str(self.count), "--kv-cache-memory", "64MiB"]
        return flags

    def layouts(self):
        """The layouts that use all devices, and three ranks of a layer, which are uneven: the issue's."""
        count = self.count
        names = [f"tp{count}", f"pp{count}"]
        if count % 2 == 0 and 2 < count:
            names.append(f"tp2pp{count // 2}")
        if 3 <= count and count != 3:
            names.append("tp3")
        return names if 1 < count else ["tp1"]

    def environment(self):
        """What every program finds in its environment: the first `count` GPUs, and that it tells what it does at once."""
        gpus = {} if self.on_cpu else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(self.count)))}
        return gpus | {"PYTHONUNBUFFERED": "1"}


def layout_flags(layout):
    """`tp2pp4` as the flags of `serve`."""
    flags = []
    for name in ("dp", "pp", "tp"):
        if name in layout:
            digits = layout.split(name)[1]
            end = next((i for i, letter in enumerate(digits) if not letter.isdigit()), len(digits))
            flags += [f"--{name}", digits[:end]]
    return flags


def gpu_memories():
    """MiB of each GPU that the driver's tool tells of, as text; none without it."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=30)
    return told.stdout.splitlines() if told.returncode == 0 else []


def smallest(memories):
    """The memory of the smallest GPU, as behind `plan --device-memory`; empty where none tells it."""
    sizes = [int(memory) for memory in memories if memory.strip().isdigit()]
    return f"{min(sizes)}MiB" if sizes else ""


def small_model(folder):
    """Writes the configuration that a CPU measures when none is given."""
    path = folder / "small.json"
    path.write_text(json.dumps(SMALL_MODEL))
    return str(path)
