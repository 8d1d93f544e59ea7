//! What the tests of this crate share: ranks as threads, and writers of tiny model files.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test takes what it needs")]

pub mod files;

use std::path::PathBuf;
use std::time::Duration;

use phalanx_device::backend::KvLayer;
use phalanx_device::collective::alone::Alone;
use phalanx_device::collective::threads;
use phalanx_device::cpu::Cpu;
use phalanx_device::{Arena, BatchLayout, Collective, DType, Device, Tensor};
use phalanx_model::{Forward, Limits, LoadOptions, Model, ModelConfig, Place, WeightType, Weights, memory};

/// Tokens of a KV block in these tests.
pub const BLOCK: usize = 4;

/// A file of the folder of reference data.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/data")).join(name)
}

/// Random numbers for tests: same seed, same numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = (self.0 ^ (self.0 >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 29)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// One prompt, the position of its first token (zeros stand in the KV cache before it), and how it is cut into steps.
#[derive(Clone)]
pub struct Prompt {
    pub tokens: Vec<i32>,
    pub first_position: usize,
    pub chunks: Vec<usize>,
}

impl Prompt {
    pub fn random(vocab: usize, len: usize, chunks: &[usize]) -> Self {
        let mut random = Random(len as u64);
        let tokens = (0..len).map(|_| random.below(vocab) as i32).collect();
        Self { tokens, first_position: 0, chunks: chunks.to_vec() }
    }
}

/// Logits `[tokens, vocab]` of every token of `prompt`, computed by tensor size times stages threads.
pub fn logits(
    weights: &Weights,
    config: &ModelConfig,
    mesh: (usize, usize),
    weight_type: WeightType,
    prompt: &Prompt,
) -> Vec<f32> {
    logits_of_each(weights, config, mesh, weight_type, std::slice::from_ref(prompt)).remove(0)
}

/// The same for several prompts, one after the other, by a model that is loaded once.
pub fn logits_of_each(
    weights: &Weights,
    config: &ModelConfig,
    (tensor_size, num_stages): (usize, usize),
    weight_type: WeightType,
    prompts: &[Prompt],
) -> Vec<Vec<f32>> {
    let mut tensor_groups: Vec<_> = (0..num_stages).map(|_| group(tensor_size)).collect();
    let mut stage_groups: Vec<_> = (0..tensor_size).map(|_| group(num_stages)).collect();
    std::thread::scope(|scope| {
        let mut ranks = Vec::new();
        for place in Place::all(tensor_size, num_stages) {
            let tensor_group = tensor_groups[place.stage].remove(0);
            let stage_group = stage_groups[place.tensor_rank].remove(0);
            let rank = move || {
                let backend = Box::new(Cpu::new(1).unwrap());
                let device = Device::new(backend, tensor_group, stage_group);
                rank_logits(&device, weights, config, (place, weight_type), prompts)
            };
            ranks.push(scope.spawn(rank));
        }
        let results: Vec<Vec<Vec<f32>>> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        let last = results[(num_stages - 1) * tensor_size].clone();
        for other in &results[(num_stages - 1) * tensor_size..] {
            assert!(*other == last, "every rank of the last stage has the same logits, to the bit");
        }
        last
    })
}

fn group(size: usize) -> Vec<Box<dyn Collective>> {
    if size == 1 {
        return vec![Box::new(Alone)];
    }
    let ends = threads::group(size, Duration::from_secs(60));
    ends.into_iter().map(|end| Box::new(end) as Box<dyn Collective>).collect()
}

/// A device with one thread and no company.
pub fn lone_device() -> Device {
    Device::new(Box::new(Cpu::new(1).unwrap()), Box::new(Alone), Box::new(Alone))
}

fn rank_logits(
    device: &Device,
    weights: &Weights,
    config: &ModelConfig,
    (place, weight_type): (Place, WeightType),
    prompts: &[Prompt],
) -> Vec<Vec<f32>> {
    let tokens = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap();
    let end = prompts.iter().map(|prompt| prompt.first_position + prompt.tokens.len()).max().unwrap();
    let limits = Limits { max_tokens: tokens, max_samples: tokens, max_model_len: end };
    let options = LoadOptions { place, limits, weight_type };
    let mut model = Model::load(device, weights, config, &options, &|_| {}).unwrap();
    prompts.iter().map(|prompt| prompt_logits(device, &mut model, prompt)).collect()
}

fn prompt_logits(device: &Device, model: &mut Model, prompt: &Prompt) -> Vec<f32> {
    let len = prompt.tokens.len();
    // One block of zeros stands for all before the first position.
    let num_blocks = 1 + len.div_ceil(BLOCK);
    let mut kv = kv_layers(device, memory::kv_shape(model.shards()), num_blocks);
    let mut ids = device.arena(Arena::tensor_bytes(DType::I32, len, 1)).unwrap().tensor(DType::I32, len, 1);
    let mut all = Vec::new();
    let mut done = 0;
    for chunk in &prompt.chunks {
        let range = done..done + chunk;
        device.write_i32(ids.view_mut().slice_rows(0..*chunk), &prompt.tokens[range.clone()]);
        let layout = layout(range, prompt.first_position, num_blocks);
        let plan = device.plan(layout, model.shards().heads);
        let cx = Forward { device, plan: &plan, ids: ids.view().slice_rows(0..*chunk) };
        if let Some(logits) = model.forward(&cx, &mut kv) {
            all.extend(device.read_f32(logits.view()));
        }
        device.collect().unwrap();
        done += chunk;
    }
    assert!(done == len, "the chunks are the prompt");
    all
}

/// KV tensors in F32, one pair a layer.
pub fn kv_layers(
    device: &Device,
    (layers, heads, dim): (usize, usize, usize),
    num_blocks: usize,
) -> Vec<KvLayer> {
    let rows = num_blocks * heads * BLOCK;
    let tensor = || -> Tensor {
        device.arena(Arena::tensor_bytes(DType::F32, rows, dim)).unwrap().tensor(DType::F32, rows, dim)
    };
    (0..layers).map(|_| KvLayer { keys: tensor(), values: tensor(), num_blocks, block_size: BLOCK }).collect()
}

/// A step of one sequence whose blocks lie in the pool in reverse order, behind a block of zeros; all rows are sampled.
fn layout(range: std::ops::Range<usize>, first_position: usize, num_blocks: usize) -> BatchLayout {
    assert!(first_position.is_multiple_of(BLOCK));
    let before = first_position / BLOCK;
    let block = |index: usize| if index < before { 0 } else { (num_blocks - 1 - (index - before)) as i32 };
    let positions = first_position + range.start..first_position + range.end;
    let blocks_per_row = before + num_blocks - 1;
    BatchLayout {
        slots: positions.clone().map(|at| block(at / BLOCK) * BLOCK as i32 + (at % BLOCK) as i32).collect(),
        query_starts: vec![0, range.len() as i32],
        context_lens: vec![positions.end as i32],
        positions: positions.map(|position| position as i32).collect(),
        block_tables: (0..blocks_per_row).map(block).collect(),
        blocks_per_row,
        block_size: BLOCK,
        sample_rows: (0..range.len() as i32).collect(),
        ids: vec![],
    }
}

/// The largest difference, as a share of the largest expected value.
pub fn difference(expected: &[f32], actual: &[f32]) -> f32 {
    assert_eq!(expected.len(), actual.len());
    assert!(actual.iter().all(|value| value.is_finite()));
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let difference = expected.iter().zip(actual).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
    difference / largest
}
