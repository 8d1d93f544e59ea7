//! Each operation of the CPU but matrices and attention, against float64 on the host, for every set of instructions.

mod support;

use phalanx_device::backend::{Heads, KvLayer};
use phalanx_device::cpu::Cpu;
use phalanx_device::cpu::features::Features;
use phalanx_device::{Backend, BatchLayout, DType, Device};
use support::{Island, Random, assert_close, device, tensor};

/// For plans that no attention is computed with.
const HEADS: Heads = Heads { num_heads: 1, num_kv_heads: 1, head_dim: 16, group_size: 1, group_offset: 0 };

/// Runs `check` with every set of instructions and some numbers of threads.
fn everywhere(check: impl Fn(&Device, &mut Random, &str)) {
    for features in Features::available() {
        for threads in [1, 3] {
            let mut random = Random::fresh();
            let what = format!("{}, {threads} threads, seed {}", features.describe(), random.seed);
            check(&device(features, threads), &mut random, &what);
        }
    }
}

/// RMSNorm of `[rows, width]` in float64.
fn normalized(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let width = weight.len();
    let mut out = Vec::new();
    for row in x.chunks_exact(width) {
        let mean = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / width as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(row.iter().zip(weight).map(|(&x, &weight)| f64::from(x) * scale * f64::from(weight)));
    }
    out
}

#[test]
fn rms_norm() {
    everywhere(|device, random, what| {
        for (rows, width) in [(1, 1), (2, 7), (5, 16), (3, 37), (33, 896), (2, 3584), (0, 8)] {
            let (x, weight) = (random.normals(rows * width), random.normals(width));
            let source = Island::new(device, rows, width, Some(&x));
            let mut out = Island::new(device, rows, width, None);
            let weights = device.tensor_f32(1, width, &weight).expect("memory");
            device.rms_norm(out.view_mut(), source.view(), weights.view(), 1e-6);
            assert_close(&out.values(device), &normalized(&x, &weight, 1e-6), 2e-6, what);
        }
    });
}

#[test]
fn add_rms_norm() {
    everywhere(|device, random, what| {
        for (rows, width) in [(1, 3), (4, 16), (40, 901), (1, 5120)] {
            let (x, residual) = (random.normals(rows * width), random.normals(rows * width));
            let weight = random.normals(width);
            let source = Island::new(device, rows, width, Some(&x));
            let mut stream = Island::new(device, rows, width, Some(&residual));
            let mut out = Island::new(device, rows, width, None);
            let weights = device.tensor_f32(1, width, &weight).expect("memory");
            device.add_rms_norm(out.view_mut(), stream.view_mut(), source.view(), weights.view(), 1e-5);
            let sum: Vec<f32> = x.iter().zip(&residual).map(|(x, residual)| x + residual).collect();
            assert_eq!(stream.values(device), sum, "{what}");
            assert_close(&out.values(device), &normalized(&sum, &weight, 1e-5), 2e-6, what);
        }
    });
}

#[test]
fn silu_mul() {
    everywhere(|device, random, what| {
        for (rows, width) in [(1, 1), (3, 15), (2, 16), (1, 4864), (20, 517)] {
            let mut x = random.normals(rows * 2 * width);
            x.iter_mut().for_each(|x| *x *= 8.0);
            for (x, extreme) in x.iter_mut().zip([-300.0, 300.0, -88.0, 0.0]) {
                *x = extreme;
            }
            let source = Island::new(device, rows, 2 * width, Some(&x));
            let mut out = Island::new(device, rows, width, None);
            device.silu_mul(out.view_mut(), source.view());
            let expected: Vec<f64> = x
                .chunks_exact(2 * width)
                .flat_map(|row| (0..width).map(|i| (f64::from(row[i]), f64::from(row[width + i]))))
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            assert_close(&out.values(device), &expected, 1e-6, what);
        }
    });
}

#[test]
fn a_nan_goes_through_and_no_further() {
    everywhere(|device, random, what| {
        let width = 40;
        for column in [0, 15, 16, 39] {
            let mut x = random.normals(2 * 2 * width);
            x[column] = f32::NAN;
            let source = Island::new(device, 2, 2 * width, Some(&x));
            let mut out = Island::new(device, 2, width, None);
            device.silu_mul(out.view_mut(), source.view());
            let nan: Vec<usize> =
                (0..2 * width).filter(|&index| out.values(device)[index].is_nan()).collect();
            assert_eq!(nan, [column], "{what}");
        }
    });
}

/// Rows `[qkv_width]` from position `first` on, q and k rotated by `angle(position, pair)`.
fn turned(x: &[f32], heads: Heads, first: usize, angle: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let (head_dim, half) = (heads.head_dim, heads.head_dim / 2);
    let turn = |at: usize| {
        let (position, column) = (first + at / heads.qkv_width(), at % heads.qkv_width());
        let own = f64::from(x[at]);
        if (heads.num_heads + heads.num_kv_heads) * head_dim <= column {
            return own;
        }
        let (pair, other) = match column % head_dim {
            i if i < half => (i, -f64::from(x[at + half])),
            i => (i - half, f64::from(x[at - half])),
        };
        own * angle(position, pair).cos() + other * angle(position, pair).sin()
    };
    (0..x.len()).map(turn).collect()
}

/// One case of `rope_and_store`: every element of q, k, v and of the cache, written or not.
fn check_rope(device: &Device, random: &mut Random, dtype: DType, heads: Heads, what: &str) {
    let Heads { num_heads, num_kv_heads, head_dim, .. } = heads;
    let (num_blocks, block_size, max_len) = (5, 7, 50);
    let rows = num_blocks * num_kv_heads * block_size;
    let mut kv = KvLayer {
        keys: tensor(device, dtype, rows, head_dim),
        values: tensor(device, dtype, rows, head_dim),
        num_blocks,
        block_size,
    };
    let half = head_dim / 2;
    let angle = |position: usize, pair: usize| position as f64 * 0.37 / (pair + 1) as f64;
    let rope: Vec<f32> = (0..max_len * head_dim)
        .map(|at| match (at / head_dim, at % head_dim) {
            (position, pair) if pair < half => angle(position, pair).cos() as f32,
            (position, pair) => angle(position, pair - half).sin() as f32,
        })
        .collect();
    let rope = device.tensor_f32(max_len, head_dim, &rope).expect("memory");
    let tokens = 9;
    let slots: Vec<usize> = random.order(num_blocks * block_size)[..tokens].to_vec();
    let first = random.below(max_len - tokens);
    let layout = BatchLayout {
        positions: (0..tokens).map(|row| (first + row) as i32).collect(),
        slots: slots.iter().map(|&slot| slot as i32).collect(),
        query_starts: vec![0, tokens as i32],
        context_lens: vec![(first + tokens) as i32],
        block_tables: vec![0; max_len],
        blocks_per_row: max_len,
        block_size,
        ..BatchLayout::default()
    };
    let plan = device.plan(layout, heads);
    let x = random.normals(tokens * heads.qkv_width());
    let mut qkv = Island::new(device, tokens, heads.qkv_width(), Some(&x));
    device.rope_and_store(qkv.view_mut(), rope.view(), &mut kv, &plan, heads);

    let rotated = (num_heads + num_kv_heads) * head_dim;
    let found = qkv.values(device);
    assert_close(&found, &turned(&x, heads, first, angle), 1e-6, what);
    for (cache, first_column) in [(&kv.keys, num_heads * head_dim), (&kv.values, rotated)] {
        let mut stored = vec![0.0; rows * head_dim];
        for (token, slot) in slots.iter().enumerate() {
            for head in 0..num_kv_heads {
                let row = (slot / block_size * num_kv_heads + head) * block_size + slot % block_size;
                let from = token * heads.qkv_width() + first_column + head * head_dim;
                for i in 0..head_dim {
                    stored[row * head_dim + i] = match dtype {
                        DType::F16 => half::f16::from_f32(found[from + i]).to_f32(),
                        DType::BF16 => half::bf16::from_f32(found[from + i]).to_f32(),
                        _ => found[from + i],
                    };
                }
            }
        }
        assert_eq!(read(cache), stored, "{what}, {dtype:?}");
    }
}

/// Any cache as F32.
fn read(tensor: &phalanx_device::Tensor) -> Vec<f32> {
    let mut bytes = vec![0; tensor.rows() * tensor.width() * tensor.dtype().bytes()];
    Cpu::new(1).expect("a thread").read(tensor.view(), &mut bytes);
    match tensor.dtype() {
        DType::F16 => {
            bytes.chunks_exact(2).map(|b| half::f16::from_ne_bytes([b[0], b[1]]).to_f32()).collect()
        }
        DType::BF16 => {
            bytes.chunks_exact(2).map(|b| half::bf16::from_ne_bytes([b[0], b[1]]).to_f32()).collect()
        }
        _ => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

#[test]
fn rope_and_store() {
    everywhere(|device, random, what| {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (num_heads, num_kv_heads, head_dim) in [(14, 2, 64), (7, 1, 128), (3, 2, 32), (1, 1, 6)] {
                let heads =
                    Heads { num_heads, num_kv_heads, head_dim, group_size: num_heads, group_offset: 0 };
                check_rope(device, random, dtype, heads, what);
            }
        }
    });
}

#[test]
fn gather_sample_rows() {
    everywhere(|device, random, what| {
        let x = random.normals(6 * 5);
        let source = Island::new(device, 6, 5, Some(&x));
        let layout = BatchLayout {
            positions: vec![0; 6],
            slots: vec![0; 6],
            query_starts: vec![0, 6],
            context_lens: vec![6],
            block_tables: vec![0],
            blocks_per_row: 1,
            block_size: 16,
            sample_rows: vec![1, 4, 5],
            ids: vec![],
        };
        let plan = device.plan(layout, HEADS);
        let mut out = Island::new(device, 3, 5, None);
        device.gather_sample_rows(out.view_mut(), source.view(), &plan);
        assert_eq!(out.values(device), [&x[5..10], &x[20..30]].concat(), "{what}");
    });
}

#[test]
fn token_ids() {
    everywhere(|device, _, what| {
        let mut arena = device.arena(512).expect("memory");
        let (mut ids, mut sampled) = (arena.tensor(DType::I32, 5, 1), arena.tensor(DType::I32, 4, 1));
        device.write_i32(sampled.view_mut(), &[70, 71, 72, 73]);
        let layout = BatchLayout {
            ids: vec![9, -1, 0, -4, -2],
            positions: vec![0; 5],
            slots: vec![0; 5],
            query_starts: vec![0, 5],
            context_lens: vec![5],
            block_tables: vec![0],
            blocks_per_row: 1,
            block_size: 16,
            sample_rows: vec![],
        };
        device.token_ids(ids.view_mut(), &device.plan(layout, HEADS), sampled.view());
        let mut bytes = [0; 20];
        Cpu::new(1).expect("a thread").read(ids.view(), &mut bytes);
        let found: Vec<i32> =
            bytes.chunks_exact(4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(found, [9, 70, 0, 73, 71], "{what}");
    });
}

#[test]
fn copy_blocks() {
    everywhere(|device, random, what| {
        let (num_blocks, rows) = (4, 6);
        let [keys, values] = [(); 2].map(|()| random.normals(num_blocks * rows * 16));
        let mut kv = KvLayer {
            keys: device.tensor_f32(num_blocks * rows, 16, &keys).expect("memory"),
            values: device.tensor_f32(num_blocks * rows, 16, &values).expect("memory"),
            num_blocks,
            block_size: 3,
        };
        // In order: block 1 gets what block 3 got.
        device.copy_blocks(&mut kv, &[(0, 3), (3, 1), (2, 2)]);
        for (tensor, before) in [(&kv.keys, &keys), (&kv.values, &values)] {
            let block = |index: usize| before[index * rows * 16..(index + 1) * rows * 16].to_vec();
            assert_eq!(read(tensor), [block(0), block(0), block(2), block(0)].concat(), "{what}");
        }
    });
}

#[test]
fn memory_is_zeroed_and_aligned_and_hostile_sizes_are_refused() {
    let cpu = Cpu::new(1).expect("a thread");
    for bytes in [0, 1, 255, 4097, 1 << 20] {
        let allocation = cpu.allocate(bytes).expect("memory");
        assert_eq!((allocation.bytes(), allocation.address() % 256), (bytes, 0));
    }
    let tensor = tensor(&device(Features::detect(), 1), DType::F32, 100, 33);
    assert!(read(&tensor).iter().all(|&x| x.to_bits() == 0));
    for bytes in [usize::MAX, usize::MAX - 255, isize::MAX as usize, 1 << 60, 1 << 46] {
        let text = cpu.allocate(bytes).expect_err("nobody has that").to_string();
        assert!(text.contains(&format!("({bytes} bytes) of host memory")), "{text}");
    }
}

#[test]
fn a_device_without_threads_is_refused() {
    assert!(Cpu::new(0).err().is_some_and(|error| error.to_string().contains("at least one thread")));
}
