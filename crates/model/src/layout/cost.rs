//! How long a rank takes for a step: the few constants of the time model, and the formulas that they stand in.

use crate::config::ModelConfig;
use crate::layout::Machine;
use crate::memory::MemoryPlan;
use crate::weights::shard::Shards;

/// What no data sheet says. They were fitted to the tables of `docs/benchmarks.md` (two H200, Qwen2.5-7B's shape, a
/// decode step in one graph, the next one started before its ids are known), and a test holds them to each row; fit them
/// again when a step gets faster.
pub struct Constants {
    /// The share of a card's memory bandwidth that streaming weights reaches.
    pub stream_share: f64,
    /// The same for the keys and values of one token a sequence.
    pub cache_share: f64,
    /// The share of its tensor FLOP/s that products reach: for as long as a decode step takes, and for as long as a prompt
    /// does, at the clocks that its power limit leaves.
    pub matmul_share: (f64, f64),
    /// The same for attention of long queries.
    pub attention_share: f64,
    /// Microseconds lost where one kernel ends and the next begins: in a step of one row, and in one of more.
    pub kernel_us: (f64, f64),
    /// Kernels of a layer: two norms, four products, RoPE, two of attention, SiLU.
    pub layer_kernels: f64,
    /// Microseconds of sampling, which nothing hides: for a step, and for each of its sequences.
    pub sampling_us: (f64, f64),
    /// Microseconds of the host between a step's ids and the next step, for a step and for each of its sequences. One
    /// stage starts the next step before, so that only pipelines wait for it.
    pub host_us: (f64, f64),
    /// Sums over NVLink in one shot: microseconds of the shortest, and the share of the bandwidth that longer ones reach.
    pub nvlink_one_shot: (f64, f64),
    /// In two shots, which send less and meet twice.
    pub nvlink_two_shot: (f64, f64),
    /// Exchanges over PCI Express.
    pub pcie: (f64, f64),
    /// Through the host's memory, which every byte crosses twice.
    pub host: (f64, f64),
}

/// The constants as fitted on 2026-11-23.
pub const CONSTANTS: Constants = Constants {
    stream_share: 0.92,
    cache_share: 0.84,
    matmul_share: (0.80, 0.70),
    attention_share: 0.52,
    kernel_us: (2.25, 3.4),
    layer_kernels: 10.0,
    sampling_us: (40.0, 2.5),
    host_us: (120.0, 1.5),
    nvlink_one_shot: (2.5, 0.39),
    nvlink_two_shot: (9.0, 0.75),
    pcie: (9.0, 0.62),
    host: (4.0, 0.39),
};

/// Bytes of an activation, a key or a value: GPUs compute in 16 bits.
const ACTIVATION_BYTES: f64 = 2.0;
/// Bytes of a logit, which is a float32.
const LOGIT_BYTES: f64 = 4.0;

/// What one step asks of a stage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Tokens to compute.
    pub(crate) rows: f64,
    /// Rows of logits.
    pub(crate) samples: f64,
    /// Tokens whose keys and values are read: the contexts of all sequences.
    pub(crate) keys_read: f64,
    /// Pairs of a query and a key that it sees.
    pub(crate) pairs: f64,
}

impl Work {
    /// One token for each of `batch` sequences behind `context` others.
    pub(crate) fn decode(batch: f64, context: f64) -> Self {
        Self { rows: batch, samples: batch, keys_read: batch * context, pairs: batch * context }
    }

    /// `rows` tokens of one prompt behind `computed` others; its last chunk is sampled from.
    pub(crate) fn chunk(rows: f64, computed: f64, is_last: bool) -> Self {
        Self {
            rows,
            samples: f64::from(u8::from(is_last)),
            keys_read: computed + rows,
            pairs: rows * (computed + rows / 2.0),
        }
    }

    /// A step full of whole prompts of `prompt_len` tokens.
    pub(crate) fn prompts(rows: f64, prompt_len: f64) -> Self {
        Self { rows, samples: rows / prompt_len, keys_read: rows, pairs: rows * prompt_len / 2.0 }
    }
}

/// A matrix's rows and columns on one rank.
type Shape = (f64, f64);

/// What one rank computes with.
#[derive(Clone, Debug)]
pub(crate) struct RankCost {
    layers: f64,
    hidden: f64,
    qkv: Shape,
    attention_output: Shape,
    gate_up: Shape,
    down: Shape,
    /// The output matrix, on the last stage.
    head: Option<Shape>,
    /// Elements of all query heads, and of all KV heads, of this rank.
    query_width: f64,
    kv_width: f64,
    /// Ranks that share each layer.
    tensor_size: usize,
    /// Bytes of a stored weight: 2 in 16 bits, less when quantised.
    weight_bytes: f64,
}

impl RankCost {
    pub(crate) fn new(config: &ModelConfig, shards: &Shards, plan: &MemoryPlan) -> Self {
        let (hidden, heads) = (config.hidden_size as f64, shards.heads);
        let (query_width, kv_width) =
            ((heads.num_heads * heads.head_dim) as f64, (heads.num_kv_heads * heads.head_dim) as f64);
        let mlp = shards.mlp_columns.own.len() as f64;
        let vocab = shards.vocab.len() as f64;
        let place = shards.place;
        let mut rank = Self {
            layers: shards.layers.len() as f64,
            hidden,
            qkv: (query_width + 2.0 * kv_width, hidden),
            attention_output: (hidden, query_width),
            gate_up: (2.0 * mlp, hidden),
            down: (hidden, mlp),
            head: place.is_last_stage().then_some((vocab, hidden)),
            query_width,
            kv_width,
            tensor_size: place.tensor_size,
            weight_bytes: ACTIVATION_BYTES,
        };
        let tables = match (place.is_first_stage(), place.is_last_stage()) {
            (true, true) if !config.tie_word_embeddings => 2.0,
            (false, false) => 0.0,
            _ => 1.0,
        };
        let elements: f64 = rank.matrices().iter().map(|(rows, columns)| rows * columns).sum();
        let elements = rank.layers * elements + tables * vocab * hidden;
        rank.weight_bytes = plan.weights_bytes as f64 / elements;
        rank
    }

    fn matrices(&self) -> [Shape; 4] {
        [self.qkv, self.attention_output, self.gate_up, self.down]
    }

    /// Seconds this rank takes for its layers' share of a step, and for the logits if it has them.
    pub(crate) fn seconds(&self, machine: &Machine, work: &Work) -> f64 {
        let products: f64 =
            self.matrices().iter().map(|shape| self.product_seconds(machine, *shape, work.rows)).sum();
        let layer = products
            + self.attention_seconds(machine, work)
            + self.activation_seconds(machine, work.rows)
            + CONSTANTS.layer_kernels * kernel_seconds(work.rows)
            + 2.0 * self.sum_seconds(machine, work.rows);
        let head = self.head.map_or(0.0, |shape| {
            // Every rank samples, so each sends its columns of the logits to all others.
            let logits_bytes = LOGIT_BYTES * work.samples * shape.0;
            let gathered = machine.links.gather_seconds(self.tensor_size, logits_bytes);
            self.product_seconds(machine, shape, work.samples) + gathered
        });
        self.layers * layer + head
    }

    /// A product of `rows` rows with a matrix, without its start: reading the matrix and computing overlap, though
    /// not to the full where both take about as long; and what computes for long gets slower.
    fn product_seconds(&self, machine: &Machine, (height, width): Shape, rows: f64) -> f64 {
        let bytes = height * width * self.weight_bytes + rows * (height + width) * ACTIVATION_BYTES;
        let reading = bytes / machine.stream_bandwidth();
        let at_peak = 2.0 * rows * height * width / machine.card.tensor_flops;
        let (for_short, for_long) = CONSTANTS.matmul_share;
        reading.hypot(at_peak / for_short).max(at_peak / for_long)
    }

    /// Decoding reads keys and values, long queries compute with them: the sum, of which one part is always small.
    fn attention_seconds(&self, machine: &Machine, work: &Work) -> f64 {
        let bytes = work.keys_read * 2.0 * self.kv_width * ACTIVATION_BYTES;
        let flops = 4.0 * work.pairs * self.query_width;
        bytes / (machine.card.memory_bandwidth * CONSTANTS.cache_share)
            + flops / (machine.card.tensor_flops * CONSTANTS.attention_share)
    }

    /// What norms, RoPE and SiLU read and write.
    fn activation_seconds(&self, machine: &Machine, rows: f64) -> f64 {
        let norms = 2.0 * 3.0 * self.hidden;
        let rope = 2.0 * self.qkv.0;
        let silu = 1.5 * self.gate_up.0;
        rows * (norms + rope + silu) * ACTIVATION_BYTES / machine.stream_bandwidth()
    }

    /// The all-reduce behind attention, and behind the MLP.
    fn sum_seconds(&self, machine: &Machine, rows: f64) -> f64 {
        machine.links.all_reduce_seconds(self.tensor_size, rows * self.hidden * ACTIVATION_BYTES)
    }
}

/// What is lost where one kernel of a step of `rows` rows ends and the next begins.
fn kernel_seconds(rows: f64) -> f64 {
    let (of_one, of_more) = CONSTANTS.kernel_us;
    1e-6 * if rows <= 1.0 { of_one } else { of_more }
}

/// Sampling a step of `rows` sequences.
pub(super) fn sampling_seconds(rows: f64) -> f64 {
    let (of_step, of_sequence) = CONSTANTS.sampling_us;
    1e-6 * (of_step + of_sequence * rows)
}

/// What the host does between the ids of a step of `rows` sequences and the next step.
pub(super) fn host_seconds(rows: f64) -> f64 {
    let (of_step, of_sequence) = CONSTANTS.host_us;
    1e-6 * (of_step + of_sequence * rows)
}

/// One replica: its stages, each as slow as its slowest rank.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaCost {
    stages: Vec<Vec<RankCost>>,
    hidden: f64,
}

impl ReplicaCost {
    /// `ranks` stage after stage, as [`crate::memory::plan_layout`] lists them.
    pub(crate) fn new(config: &ModelConfig, ranks: &[RankCost], tensor_size: usize) -> Self {
        let stages = ranks.chunks(tensor_size).map(<[RankCost]>::to_vec).collect();
        Self { stages, hidden: config.hidden_size as f64 }
    }

    fn stage_seconds(&self, machine: &Machine, stage: usize, work: &Work) -> f64 {
        self.stages[stage].iter().map(|rank| rank.seconds(machine, work)).fold(0.0, f64::max)
    }

    fn hop_seconds(&self, machine: &Machine, rows: f64) -> f64 {
        machine.links.hand_over_seconds(rows * self.hidden * ACTIVATION_BYTES)
    }

    /// Seconds until each of `batch` sequences behind `context` tokens has its next token. A pipeline deals them to as
    /// many steps as it has stages; then the slowest stage sets the pace, or the way of one step through all of them and
    /// back through the host. The last stage samples.
    pub(crate) fn decode_seconds(&self, machine: &Machine, batch: f64, context: f64) -> f64 {
        let steps = (self.stages.len() as f64).min(batch);
        let rows = (batch / steps).ceil();
        let work = Work::decode(rows, context);
        let last = self.stages.len() - 1;
        let stage = |stage| {
            let sampling = if stage == last { sampling_seconds(rows) } else { 0.0 };
            self.stage_seconds(machine, stage, &work) + sampling
        };
        let stages: Vec<f64> = (0..=last).map(stage).collect();
        let back = if last == 0 { 0.0 } else { host_seconds(rows) };
        let way = stages.iter().sum::<f64>() + last as f64 * self.hop_seconds(machine, rows) + back;
        let slowest = stages.into_iter().fold(0.0, f64::max);
        way.max(steps * slowest)
    }

    /// Seconds until the first token behind a prompt of `prompt_len` tokens, computed `chunk_len` at a time: each stage
    /// takes a chunk when the stage before has handed it over and its own last one is done.
    pub(crate) fn first_token_seconds(&self, machine: &Machine, prompt_len: usize, chunk_len: usize) -> f64 {
        let mut free_at = vec![0.0; self.stages.len()];
        let mut computed = 0;
        while computed < prompt_len {
            let rows = chunk_len.min(prompt_len - computed);
            let is_last = computed + rows == prompt_len;
            let work = Work::chunk(rows as f64, computed as f64, is_last);
            let mut arrives: f64 = free_at[0];
            for (stage, free) in free_at.iter_mut().enumerate() {
                *free = arrives.max(*free) + self.stage_seconds(machine, stage, &work);
                arrives = *free + self.hop_seconds(machine, rows as f64);
            }
            computed += rows;
        }
        free_at[free_at.len() - 1] + sampling_seconds(1.0)
    }

    /// Tokens a second, prompts and answers, of a replica that always has `batch` requests of these lengths: each costs
    /// its part of steps full of prompts and of its turns in decoding.
    pub(crate) fn traffic(&self, machine: &Machine, batch: f64, lens: (f64, f64), chunk_len: f64) -> f64 {
        let (input, output) = lens;
        let work = Work::prompts(chunk_len, input);
        let slowest =
            (0..self.stages.len()).map(|stage| self.stage_seconds(machine, stage, &work)).fold(0.0, f64::max);
        let prompt = (slowest + sampling_seconds(work.samples)) * input / chunk_len;
        let answer = output * self.decode_seconds(machine, batch, input + output / 2.0) / batch;
        (input + output) / (prompt + answer)
    }
}
