//! Matrix products and embeddings of every format on every path this machine has, against f64 on the decoded weights.

use std::sync::Arc;

use half::{bf16, f16};
use phalanx_device::cpu::embed::embed;
use phalanx_device::cpu::features::Features;
use phalanx_device::cpu::matmul::huge_pages::HugePages;
use phalanx_device::cpu::matmul::{Workspace, matmul, pack};
use phalanx_device::cpu::pool::Pool;
use phalanx_device::quant::dequantize;
use phalanx_device::{Allocation, Arena, DType, DeviceError, Format, Matrix, Tensor, View, ViewMut};

const FORMATS: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::BF16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Line([u8; 256]);

fn allocate(bytes: usize) -> Result<Allocation, DeviceError> {
    let lines = vec![Line([0; 256]); bytes.div_ceil(256).max(1)];
    let address = lines.as_ptr() as usize;
    Ok(Allocation::new(address, lines.len() * 256, Arc::new(lines)))
}

/// A small generator: xorshift64*.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Between -1 and 1.
    fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.signed()).collect()
    }
}

/// Random rows of a format: any codes and sub-scales, half-precision scales below one.
fn random_weight(random: &mut Random, format: Format, rows: usize, columns: usize) -> Vec<u8> {
    let halves: &[usize] = match format {
        Format::F32 | Format::F16 | Format::BF16 => {
            return random
                .values(rows * columns)
                .into_iter()
                .flat_map(|value| match format {
                    Format::F32 => value.to_le_bytes().to_vec(),
                    Format::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                    _ => bf16::from_f32(value).to_le_bytes().to_vec(),
                })
                .collect();
        }
        Format::Q6K => &[208],
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
        _ => &[0],
    };
    let mut bytes: Vec<u8> = (0..rows * format.row_bytes(columns)).map(|_| random.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &at in halves {
            block[at..at + 2].copy_from_slice(&f16::from_f32(random.signed()).to_le_bytes());
        }
    }
    bytes
}

/// The largest column count no larger than `columns` that the format can have, at least one block.
fn columns_for(format: Format, columns: usize) -> usize {
    (columns / format.block_len()).max(1) * format.block_len()
}

fn tensor(rows: usize, width: usize, dtype: DType, bytes: &[u8]) -> Tensor {
    let allocation = allocate(Arena::tensor_bytes(dtype, rows, width)).expect("host memory");
    // SAFETY: the allocation is larger than the tensor, and nobody else knows it.
    #[allow(unsafe_code)]
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), allocation.address() as *mut u8, bytes.len());
    }
    Arena::new(allocation).tensor(dtype, rows, width)
}

fn floats(rows: usize, width: usize, values: &[f32]) -> Tensor {
    assert_eq!(values.len(), rows * width);
    tensor(rows, width, DType::F32, &values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>())
}

fn values(view: View<'_>) -> Vec<f32> {
    (0..view.rows() * view.width())
        .map(|i| {
            let at = i / view.width() * view.stride() + i % view.width();
            // SAFETY: inside the view.
            #[allow(unsafe_code)]
            unsafe {
                *(view.address() as *const f32).add(at)
            }
        })
        .collect()
}

/// A weight with what it decodes to.
struct Weight {
    matrix: Matrix,
    decoded: Vec<f32>,
}

fn weight(random: &mut Random, pool: &Pool, format: Format, rows: usize, columns: usize) -> Weight {
    let bytes = random_weight(random, format, rows, columns);
    let mut decoded = vec![0.0; rows * columns];
    dequantize(format, &bytes, &mut decoded);
    let matrix = pack(pool, format, rows, columns, &bytes, allocate).expect("host memory");
    Weight { matrix, decoded }
}

/// What `x` becomes before it is multiplied: the rule in words, written a second time.
fn as_multiplied(format: Format, features: Features, x: &[f32]) -> Vec<f64> {
    match format {
        Format::F32 | Format::F16 => x.iter().map(|&x| f64::from(x)).collect(),
        Format::BF16 if features.bf16() => x.iter().map(|&x| bf16::from_f32(x).to_f64()).collect(),
        Format::BF16 => x.iter().map(|&x| f64::from(x)).collect(),
        _ => x
            .chunks(32)
            .flat_map(|x| {
                let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
                let inverse = |scale: f32| if scale == 0.0 { 0.0 } else { 1.0 / scale };
                x.iter().map(move |x| {
                    let coarse = (x * inverse(scale)).round_ties_even();
                    let fine_scale = scale / 254.0;
                    let fine = ((x - scale * coarse) * inverse(fine_scale)).round_ties_even();
                    f64::from(coarse) * f64::from(scale) + f64::from(fine) * f64::from(fine_scale)
                })
            })
            .collect(),
    }
}

fn run(pool: &Pool, features: Features, x: View<'_>, weight: &Matrix, bias: Option<View<'_>>) -> Vec<f32> {
    let mut out = floats(x.rows(), weight.rows, &vec![f32::NAN; x.rows() * weight.rows]);
    matmul(pool, &mut Workspace::new(features), out.view_mut(), x, weight, bias);
    values(out.view())
}

fn check(features: Features, format: Format, m: usize, n: usize, k: usize) {
    let mut random = Random(0x9e37_79b9 + (m * 1_000_003 + n * 1009 + k) as u64);
    let pool = Pool::new(1);
    let weight = weight(&mut random, &pool, format, n, k);
    let x = random.values(m * k);
    let bias = random.values(n);
    let out = run(&pool, features, floats(m, k, &x).view(), &weight.matrix, Some(floats(1, n, &bias).view()));
    for (t, x) in x.chunks_exact(k).enumerate() {
        let x = as_multiplied(format, features, x);
        for (row, w) in weight.decoded.chunks_exact(k).enumerate() {
            let products = x.iter().zip(w).map(|(x, &w)| x * f64::from(w));
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
            let (expected, got) = (sum + f64::from(bias[row]), f64::from(out[t * n + row]));
            // A minimum is subtracted from sums of its own size: those roundings count, too.
            let tolerance = 1e-5 * size.max(1.0);
            assert!(
                (got - expected).abs() <= tolerance,
                "{format:?} {} [{m}, {k}] x [{n}, {k}]: row {t}, column {row}: {got}, not {expected} +- {tolerance}",
                features.describe()
            );
        }
    }
}

#[test]
fn products_equal_f64_for_every_format_path_and_shape() {
    for features in Features::available() {
        for format in FORMATS {
            for m in [1, 2, 3, 7, 8, 17, 64] {
                check(features, format, m, 37, columns_for(format, 7 * 32));
            }
            for (m, n, k) in [
                (0, 3, 256),
                (1, 1, 256),
                (5, 16, 896),
                (2, 15, 1),
                (9, 33, 4864),
                (1, 128, 1030),
                (4, 17, 513),
            ] {
                check(features, format, m, n, columns_for(format, k));
            }
        }
    }
}

/// The promise that a seed gives the same text whatever else is in the batch.
#[test]
fn a_rows_bits_do_not_depend_on_the_batch_the_threads_or_the_path() {
    let mut random = Random(7);
    for format in FORMATS {
        let (m, n, k) = (67, 45, columns_for(format, 1344));
        let weight = weight(&mut random, &Pool::new(3), format, n, k);
        let x = floats(m, k, &random.values(m * k));
        let mut reference: Option<Vec<f32>> = None;
        for features in Features::available() {
            let all = run(&Pool::new(1), features, x.view(), &weight.matrix, None);
            assert_eq!(
                all,
                run(&Pool::new(3), features, x.view(), &weight.matrix, None),
                "{format:?} threads"
            );
            for (first, count) in [(0, 1), (66, 1), (3, 2), (8, 3), (20, 4), (40, 8), (1, 13), (2, 32)] {
                let rows = x.view().slice_rows(first..first + count);
                let some = run(&Pool::new(1), features, rows, &weight.matrix, None);
                assert_eq!(some, all[first * n..(first + count) * n], "{format:?} {}", features.describe());
            }
            let dense = matches!(format, Format::F32 | Format::F16 | Format::BF16);
            match &reference {
                Some(reference) if !dense => {
                    assert_eq!(&all, reference, "{format:?} {}", features.describe());
                }
                _ => reference = Some(all),
            }
        }
    }
}

#[test]
fn strided_views_are_read_and_written_and_their_surroundings_left_alone() {
    let (m, n, k) = (5, 21, 256);
    let mut random = Random(11);
    for features in Features::available() {
        for format in FORMATS {
            let pool = Pool::new(2);
            let weight = weight(&mut random, &pool, format, n, k);
            let wide = random.values(m * (k + 40));
            let x = floats(m, k + 40, &wide);
            let narrow: Vec<f32> =
                wide.chunks_exact(k + 40).flat_map(|row| row[8..8 + k].iter().copied()).collect();
            let expected = run(&pool, features, floats(m, k, &narrow).view(), &weight.matrix, None);

            let mut out = floats(m, n + 9, &vec![42.0; m * (n + 9)]);
            let part =
                |out: &mut Tensor, f: &mut dyn FnMut(ViewMut<'_>)| f(out.view_mut().slice_columns(4..4 + n));
            part(&mut out, &mut |out| {
                let x = x.view().slice_columns(8..8 + k);
                matmul(&pool, &mut Workspace::new(features), out, x, &weight.matrix, None);
            });
            for (row, expected) in values(out.view()).chunks_exact(n + 9).zip(expected.chunks_exact(n)) {
                assert_eq!(&row[4..4 + n], expected, "{format:?} {}", features.describe());
                assert!(row[..4].iter().chain(&row[4 + n..]).all(|&value| value == 42.0), "{format:?}");
            }
        }
    }
}

#[test]
fn a_nan_or_infinity_stays_visible_and_in_its_row() {
    let (n, k) = (20, 512);
    let mut random = Random(13);
    for features in Features::available() {
        for format in FORMATS {
            let pool = Pool::new(1);
            let weight = weight(&mut random, &pool, format, n, k);
            let mut x = random.values(3 * k);
            (x[k + 5], x[2 * k + 300]) = (f32::NAN, f32::INFINITY);
            let out = run(&pool, features, floats(3, k, &x).view(), &weight.matrix, None);
            assert!(out[..n].iter().all(|value| value.is_finite()), "{format:?} {}", features.describe());
            assert!(out[n..].iter().all(|value| !value.is_finite()), "{format:?} {}", features.describe());
        }
    }
}

#[test]
fn embedded_rows_are_the_decoded_rows_and_other_ranks_rows_are_zero() {
    let (rows, first_id) = (37, 100);
    let mut random = Random(17);
    let pool = Pool::new(2);
    for format in FORMATS {
        let k = columns_for(format, 513);
        let weight = weight(&mut random, &pool, format, rows, k);
        let ids: [i32; 6] = [100, 136, 99, 137, 117, -1];
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
        let ids_tensor = tensor(ids.len(), 1, DType::I32, &bytes);
        let mut out = floats(ids.len(), k, &vec![f32::NAN; ids.len() * k]);
        embed(&pool, out.view_mut(), ids_tensor.view(), &weight.matrix, first_id);
        for (&id, row) in ids.iter().zip(values(out.view()).chunks_exact(k)) {
            match usize::try_from(id - 100) {
                Ok(index) if index < rows => assert_eq!(row, &weight.decoded[index * k..][..k], "{format:?}"),
                _ => assert!(row.iter().all(|&value| value == 0.0), "{format:?} {id}"),
            }
        }
    }
}

/// Pieces of slabs are aligned and apart, and each keeps its slab alive; a slab that is refused is no error while there
/// is room for the piece.
#[test]
fn huge_pages_hand_out_pieces() {
    let pages = HugePages::new();
    let pieces: Vec<Allocation> = [1, 255, 256, 40 << 20, 3 << 20, 20 << 20, 44 << 20]
        .into_iter()
        .map(|bytes| pages.allocate(bytes, allocate).unwrap())
        .collect();
    drop(pages);
    let mut ranges: Vec<(usize, usize)> =
        pieces.iter().map(|piece| (piece.address(), piece.address() + piece.bytes())).collect();
    ranges.sort_unstable();
    assert!(ranges.iter().all(|(start, _)| start % 256 == 0));
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:?}");

    let tight = |bytes: usize| match bytes {
        ..=1000 => allocate(bytes),
        _ => Err(DeviceError("no more".to_owned())),
    };
    assert_eq!(HugePages::new().allocate(1000, tight).unwrap().bytes(), 1024);
    assert_eq!(HugePages::new().allocate(1001, tight).unwrap_err(), DeviceError("no more".to_owned()));
}
