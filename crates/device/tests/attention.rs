//! Attention against float64, and the promise that a query's bits depend on its own sequence alone.

mod support;

use half::{bf16, f16};
use phalanx_device::backend::{Heads, KvLayer};
use phalanx_device::cpu::Cpu;
use phalanx_device::cpu::features::Features;
use phalanx_device::{Backend, BatchLayout, DType, Device, Tensor};
use support::{Island, Random, assert_close, device, tensor};

/// A sequence: queries, keys and values of all its tokens, rounded to what the cache holds.
struct Sequence {
    /// `[len, num_heads * head_dim]`.
    queries: Vec<f32>,
    /// `[len, num_kv_heads * head_dim]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Where its blocks lie.
    blocks: Vec<usize>,
}

/// Sequences and a cache that holds them; slots that belong to no token are NaN.
struct World {
    heads: Heads,
    block_size: usize,
    sequences: Vec<Sequence>,
    kv: KvLayer,
}

fn rounded(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

fn fill(tensor: &mut Tensor, values: &[f32]) {
    let bytes: Vec<u8> = match tensor.dtype() {
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_ne_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_ne_bytes()).collect(),
    };
    Cpu::new(1).expect("a thread").write(tensor.view_mut(), &bytes);
}

impl World {
    fn new(
        device: &Device,
        random: &mut Random,
        dtype: DType,
        heads: Heads,
        block_size: usize,
        lens: &[usize],
    ) -> Self {
        let num_blocks = lens.iter().map(|len| len.div_ceil(block_size)).sum::<usize>() + 1;
        let mut free = random.order(num_blocks);
        let rows = num_blocks * heads.num_kv_heads * block_size;
        let mut caches = [(); 2].map(|()| vec![f32::NAN; rows * heads.head_dim]);
        let mut sequences = Vec::new();
        for &len in lens {
            let blocks = free.split_off(free.len() - len.div_ceil(block_size));
            let width = heads.num_kv_heads * heads.head_dim;
            let [keys, values] = [(); 2].map(|()| {
                random.normals(len * width).into_iter().map(|x| rounded(dtype, x)).collect::<Vec<f32>>()
            });
            for (cache, source) in caches.iter_mut().zip([&keys, &values]) {
                for (index, head) in source.chunks_exact(heads.head_dim).enumerate() {
                    let (position, head_index) = (index / heads.num_kv_heads, index % heads.num_kv_heads);
                    let block = blocks[position / block_size];
                    let row = (block * heads.num_kv_heads + head_index) * block_size + position % block_size;
                    cache[row * heads.head_dim..][..heads.head_dim].copy_from_slice(head);
                }
            }
            // Larger than normal, so that some weights are near one.
            let queries: Vec<f32> =
                random.normals(len * heads.num_heads * heads.head_dim).iter().map(|x| x * 2.0).collect();
            sequences.push(Sequence { queries, keys, values, blocks });
        }
        let mut kv = KvLayer {
            keys: tensor(device, dtype, rows, heads.head_dim),
            values: tensor(device, dtype, rows, heads.head_dim),
            num_blocks,
            block_size,
        };
        fill(&mut kv.keys, &caches[0]);
        fill(&mut kv.values, &caches[1]);
        Self { heads, block_size, sequences, kv }
    }

    /// Runs one batch of (sequence, first row, rows); returns the rows of each.
    fn run(&self, device: &Device, batch: &[(usize, usize, usize)]) -> Vec<Vec<f32>> {
        let width = self.heads.num_heads * self.heads.head_dim;
        let blocks_per_row = self.sequences.iter().map(|sequence| sequence.blocks.len()).max().unwrap_or(0);
        let mut layout = BatchLayout {
            query_starts: vec![0],
            blocks_per_row,
            block_size: self.block_size,
            ..BatchLayout::default()
        };
        let mut qkv = Vec::new();
        for &(index, first, rows) in batch {
            let sequence = &self.sequences[index];
            layout.positions.extend((first..first + rows).map(|position| position as i32));
            layout.slots.extend((0..rows).map(|_| 0));
            layout.query_starts.push(layout.positions.len() as i32);
            layout.context_lens.push((first + rows) as i32);
            let mut table = sequence.blocks.clone();
            table.resize(blocks_per_row, 0);
            layout.block_tables.extend(table.into_iter().map(|block| block as i32));
            for row in sequence.queries[first * width..].chunks_exact(width).take(rows) {
                qkv.extend_from_slice(row);
                // Keys and values are read from the cache, never from here.
                qkv.resize(qkv.len() + self.heads.qkv_width() - width, f32::NAN);
            }
        }
        let tokens = layout.tokens();
        let plan = device.plan(layout, self.heads);
        let qkv = Island::new(device, tokens, self.heads.qkv_width(), Some(&qkv));
        let mut out = Island::new(device, tokens, width, None);
        device.attention(out.view_mut(), qkv.view(), &self.kv, &plan, self.heads);
        let mut rest = out.values(device);
        let mut found = Vec::new();
        for &(_, _, rows) in batch {
            let others = rest.split_off(rows * width);
            found.push(std::mem::replace(&mut rest, others));
        }
        found
    }

    /// What row `position` of a sequence should be, in float64.
    fn expected(&self, sequence: usize, position: usize) -> Vec<f64> {
        let Heads { num_heads, num_kv_heads, head_dim, .. } = self.heads;
        let sequence = &self.sequences[sequence];
        let mut out = Vec::new();
        for head in 0..num_heads {
            let query = &sequence.queries[(position * num_heads + head) * head_dim..][..head_dim];
            let part = |from: &[f32], key: usize, i: usize| {
                f64::from(from[(key * num_kv_heads + self.heads.kv_head(head)) * head_dim + i])
            };
            let scores: Vec<f64> = (0..=position)
                .map(|key| {
                    let dot: f64 =
                        (0..head_dim).map(|i| f64::from(query[i]) * part(&sequence.keys, key, i)).sum();
                    dot / (head_dim as f64).sqrt()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..head_dim {
                let weighted: f64 = weights
                    .iter()
                    .enumerate()
                    .map(|(key, weight)| weight * part(&sequence.values, key, i))
                    .sum();
                out.push(weighted / sum);
            }
        }
        out
    }
}

const QWEN_HALF_B: Heads =
    Heads { num_heads: 14, num_kv_heads: 2, head_dim: 64, group_size: 7, group_offset: 0 };

/// Query to KV head ratios that occur: 14:2, 28:4 whole and as ranks of TP 3 have it, MHA, MQA.
const RATIOS: [Heads; 6] = [
    QWEN_HALF_B,
    Heads { num_heads: 28, num_kv_heads: 4, head_dim: 128, group_size: 7, group_offset: 0 },
    Heads { num_heads: 9, num_kv_heads: 3, head_dim: 32, group_size: 7, group_offset: 3 },
    Heads { num_heads: 2, num_kv_heads: 1, head_dim: 16, group_size: 7, group_offset: 5 },
    Heads { num_heads: 3, num_kv_heads: 3, head_dim: 80, group_size: 1, group_offset: 0 },
    Heads { num_heads: 70, num_kv_heads: 1, head_dim: 16, group_size: 70, group_offset: 0 },
];

#[test]
fn equals_float64() {
    for features in Features::available() {
        for (index, heads) in RATIOS.into_iter().enumerate() {
            let dtype = [DType::F32, DType::F16, DType::BF16][index % 3];
            let device = device(features, 1 + index % 3);
            let mut random = Random::fresh();
            let what = format!("{} {heads:?} {dtype:?} seed {}", features.describe(), random.seed);
            let block_size = [16, 5, 32][index % 3];
            let lens = [1, block_size - 1, block_size, block_size + 1, 3 * block_size + 2, 150];
            let world = World::new(&device, &mut random, dtype, heads, block_size, &lens);
            let batch: Vec<_> = lens
                .iter()
                .enumerate()
                .map(|(sequence, &len)| {
                    let rows = 1 + random.below(len);
                    (sequence, len - rows, rows)
                })
                .collect();
            for (rows, (sequence, first, count)) in world.run(&device, &batch).into_iter().zip(batch) {
                let expected: Vec<f64> =
                    (first..first + count).flat_map(|position| world.expected(sequence, position)).collect();
                assert_close(&rows, &expected, 5e-6, &what);
            }
        }
    }
}

#[test]
fn long_contexts_equal_float64() {
    for features in Features::available() {
        let mut random = Random::fresh();
        let what = format!("{} seed {}", features.describe(), random.seed);
        for threads in [1, 4] {
            let device = device(features, threads);
            let lens = [1023, 1024, 1025, 3000];
            let world = World::new(&device, &mut random, DType::F16, QWEN_HALF_B, 16, &lens);
            // One row each, and a chunk that crosses from one span of keys to the next.
            for batch in [vec![(0, 1022, 1), (1, 1023, 1), (2, 1024, 1), (3, 2999, 1)], vec![(3, 2040, 20)]] {
                for (rows, (sequence, first, count)) in world.run(&device, &batch).into_iter().zip(batch) {
                    let expected: Vec<f64> = (first..first + count)
                        .flat_map(|position| world.expected(sequence, position))
                        .collect();
                    assert_close(&rows, &expected, 5e-6, &what);
                }
            }
        }
    }
}

/// Bits of numbers, for comparing.
fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn bits_depend_neither_on_chunks_nor_on_batches_nor_on_threads() {
    for features in Features::available() {
        let mut random = Random::new(11);
        let single = device(features, 1);
        let heads = Heads { num_heads: 9, num_kv_heads: 3, head_dim: 32, group_size: 7, group_offset: 3 };
        let world = World::new(&single, &mut random, DType::F16, heads, 16, &[2100, 70, 1]);
        let whole = bits(&world.run(&single, &[(0, 0, 2100)])[0]);
        let width = heads.num_heads * heads.head_dim;
        for threads in [1, 2, 5] {
            let device = device(features, threads);
            let mut position = 0;
            for chunk in [1, 6, 57, 300, 800, 1, 16, 700, 219] {
                let batch = [(1, 3, 60), (0, position, chunk), (2, 0, 1)];
                let found = world.run(&device, &batch);
                let expected = &whole[position * width..(position + chunk) * width];
                assert!(bits(&found[1]) == expected, "{} at {position}", features.describe());
                position += chunk;
            }
            assert_eq!(position, 2100);
            for position in [0, 15, 63, 64, 1023, 1024, 1025, 2048, 2099] {
                let alone = bits(&world.run(&device, &[(0, position, 1)])[0]);
                assert!(alone == whole[position * width..(position + 1) * width], "row {position} alone");
            }
        }
    }
}

#[test]
fn avx2_and_avx512_give_the_same_bits() {
    let with_fma: Vec<Features> = Features::available().into_iter().skip(1).collect();
    let mut found = Vec::new();
    for features in with_fma {
        let device = device(features, 1);
        let mut random = Random::new(12);
        let world = World::new(&device, &mut random, DType::BF16, QWEN_HALF_B, 16, &[200]);
        found.push(bits(&world.run(&device, &[(0, 0, 200)])[0]));
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_sequence_that_went_wrong_spoils_no_other() {
    for features in Features::available() {
        let device = device(features, 2);
        let mut random = Random::new(13);
        let world = World::new(&device, &mut random, DType::F32, QWEN_HALF_B, 16, &[40, 40]);
        let good = world.run(&device, &[(0, 20, 20), (1, 20, 20)]);
        let mut keys = vec![0; world.kv.keys.rows() * 64 * 4];
        let cpu = Cpu::new(1).expect("a thread");
        cpu.read(world.kv.keys.view(), &mut keys);
        // The first sequence's key of position 25 becomes NaN.
        let row = world.sequences[0].blocks[1] * 2 * 16 + 9;
        keys[row * 64 * 4..][..4].copy_from_slice(&f32::NAN.to_ne_bytes());
        let mut world = world;
        cpu.write(world.kv.keys.view_mut(), &keys);
        let bad = world.run(&device, &[(0, 20, 20), (1, 20, 20)]);
        assert_eq!(bits(&bad[1]), bits(&good[1]), "{}", features.describe());
        let width = 14 * 64;
        assert_eq!(bits(&bad[0][..5 * width]), bits(&good[0][..5 * width]), "rows before it do not see it");
        assert!(bad[0][5 * width].is_nan(), "rows from it on do");
    }
}

// A tile of keys and values is brought in whole, also what lies behind some of its rows.
#[test]
fn a_position_that_went_wrong_spoils_no_row_before_it() {
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for (features, dtype) in Features::available()
        .into_iter()
        .flat_map(|features| [(features, DType::F32), (features, DType::F16), (features, DType::BF16)])
    {
        let device = device(features, 2);
        let mut random = Random::new(14);
        let mut world = World::new(&device, &mut random, dtype, QWEN_HALF_B, 16, &[150]);
        let good = bits(&world.run(&device, &[(0, 0, 150)])[0]);
        let size = dtype.bytes();
        let cpu = Cpu::new(1).expect("a thread");
        for (position, bad) in [149, 90, 64, 63].into_iter().zip(bad.into_iter().cycle()) {
            let block = world.sequences[0].blocks[position / 16];
            for tensor in [&mut world.kv.keys, &mut world.kv.values] {
                let mut bytes = vec![0; tensor.rows() * 64 * size];
                cpu.read(tensor.view(), &mut bytes);
                let number = match dtype {
                    DType::F16 => f16::from_f32(bad).to_ne_bytes().to_vec(),
                    DType::BF16 => bf16::from_f32(bad).to_ne_bytes().to_vec(),
                    _ => bad.to_ne_bytes().to_vec(),
                };
                for head in 0..2 {
                    let row = (block * 2 + head) * 16 + position % 16;
                    bytes[row * 64 * size..(row + 1) * 64 * size].copy_from_slice(&number.repeat(64));
                }
                cpu.write(tensor.view_mut(), &bytes);
            }
            let found = world.run(&device, &[(0, 0, 150)]).remove(0);
            let (before, from) = found.split_at(position * 14 * 64);
            let what = format!("{} {dtype:?} position {position}", features.describe());
            assert!(bits(before) == good[..before.len()], "{what}: rows before it do not see it");
            assert!(from.iter().all(|x| !x.is_finite()), "{what}: rows from it on do");
        }
    }
}
