//! Sampling: the kept sets against a naive sort, the draws against their distribution, and what no draw may depend on.

mod support;

use phalanx_device::cpu::Cpu;
use phalanx_device::cpu::features::Features;
use phalanx_device::cpu::philox::uniform;
use phalanx_device::sampling::SeenToken;
use phalanx_device::{Backend, DType, Device, SampleRow, SampledRow, Tensor};
use support::{Island, Random, device, tensor};

/// Greedy, nothing on.
fn plain() -> SampleRow {
    SampleRow {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seen: vec![],
        edits: vec![],
        seed: 0,
        position: 0,
        logprobs: None,
    }
}

/// Samples rows of logits, all of one width, of which `vocab` are tokens.
fn sample(device: &Device, rows: &[Vec<f32>], vocab: usize, how: &[SampleRow]) -> Vec<SampledRow> {
    let mut logits = Island::new(device, rows.len(), rows[0].len(), Some(&rows.concat()));
    let mut tokens = tensor(device, DType::I32, rows.len(), 1);
    device.sample(logits.view_mut(), vocab, how, tokens.view_mut());
    let sampled = device.collect().expect("no fault");
    assert!(device.collect().expect("no fault").is_empty(), "rows are collected once");
    assert_eq!(ids(&tokens), sampled.iter().map(|row| row.token).collect::<Vec<_>>(), "the next step's ids");
    sampled
}

/// What a step left for the next one.
fn ids(tokens: &Tensor) -> Vec<u32> {
    let mut bytes = vec![0; tokens.rows() * 4];
    Cpu::new(1).expect("a thread").read(tokens.view(), &mut bytes);
    bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn steps_are_collected_in_their_order() {
    let device = device(Features::detect(), 1);
    let mut tokens = tensor(&device, DType::I32, 1, 1);
    let mut start = |largest: usize| {
        let mut logits =
            device.tensor_f32(1, 9, &std::array::from_fn::<f32, 9, _>(|at| f32::from(at == largest)));
        let logits = logits.as_mut().expect("memory");
        device.sample(logits.view_mut(), 9, &[plain()], tokens.view_mut());
        device.end_step();
    };
    assert!(!device.is_done(), "nothing was started");
    start(3);
    start(5);
    // A step that samples nothing.
    device.end_step();
    start(7);
    let collected = [(); 4].map(|()| {
        assert!(device.is_done(), "operations are done when they return");
        device.collect().expect("no fault").iter().map(|row| row.token).collect::<Vec<_>>()
    });
    assert_eq!(collected, [vec![3], vec![5], vec![], vec![7]]);
    assert!(!device.is_done(), "all are collected");
}

/// Weights of the kept tokens by the book: sort everything, in float64.
fn naive(logits: &[f32], how: &SampleRow) -> Vec<f64> {
    let mut logits: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    for &(token, added) in &how.edits {
        logits[token as usize] += f64::from(added);
    }
    for seen in &how.seen {
        let (x, penalty) = (logits[seen.token as usize], f64::from(how.repetition_penalty));
        let mut x = if 0.0 < x { x / penalty } else { x * penalty };
        if 0 < seen.output_count {
            x -= f64::from(how.presence_penalty)
                + f64::from(how.frequency_penalty) * f64::from(seen.output_count);
        }
        logits[seen.token as usize] = x;
    }
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> =
        logits.iter().map(|x| ((x - largest) / f64::from(how.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if 0 < how.top_k {
        order.truncate(how.top_k as usize);
    }
    if how.top_p < 1.0 {
        let share = f64::from(how.top_p) * order.iter().map(|&id| weights[id]).sum::<f64>();
        let mut sum = 0.0;
        let end = order.iter().position(|&id| {
            sum += weights[id];
            share <= sum
        });
        order.truncate(end.map_or(order.len(), |end| end + 1));
    }
    order.retain(|&id| f64::from(how.min_p) <= weights[id]);
    let mut kept = vec![0.0; logits.len()];
    for id in order {
        kept[id] = weights[id];
    }
    kept
}

/// The token whose share of the line from 0 to 1 covers `uniform`.
fn walk(weights: &[f64], uniform: f64) -> u32 {
    let target = uniform * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let found = weights.iter().position(|weight| {
        sum += weight;
        target < sum
    });
    found.expect("the sum reaches its parts") as u32
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_never_a_padded_token() {
    for features in Features::available() {
        let device = device(features, 2);
        let mut random = Random::fresh();
        for (width, vocab) in [(1, 1), (20, 17), (1000, 999), (152_064, 151_665)] {
            let mut rows: Vec<Vec<f32>> = (0..3).map(|_| random.normals(width)).collect();
            for row in &mut rows {
                row[vocab..].fill(1e30);
            }
            // The row's largest twice.
            let (first, second) = (random.below(vocab), random.below(vocab));
            (rows[1][first], rows[1][second]) = (50.0, 50.0);
            let found = sample(&device, &rows, vocab, &vec![plain(); 3]);
            assert_eq!(found[1].token as usize, first.min(second), "seed {}", random.seed);
            for (row, found) in rows.iter().zip(found) {
                let largest = row[..vocab].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let expected = row.iter().position(|&x| x == largest).expect("it is there");
                assert_eq!((found.token as usize, found.finite), (expected, true), "seed {}", random.seed);
            }
        }
    }
}

/// Many random ways to sample.
fn any(random: &mut Random, vocab: usize) -> SampleRow {
    let mut how = plain();
    how.temperature = [0.05, 0.7, 1.0, 1.5, 3.0][random.below(5)];
    how.top_k = [0, 0, 1, 2, 17, 50, 400, 1_000_000][random.below(8)];
    how.top_p = [1.0, 1.0, 0.0, 0.1, 0.5, 0.9, 0.999][random.below(7)];
    how.min_p = [0.0, 0.0, 0.01, 0.3, 1.0][random.below(5)];
    how.repetition_penalty = [1.0, 1.3, 0.8][random.below(3)];
    how.presence_penalty = [0.0, 0.5, -1.0][random.below(3)];
    how.frequency_penalty = [0.0, 0.3][random.below(2)];
    how.seen = random.order(vocab)[..random.below(vocab.min(20))]
        .iter()
        .map(|&token| SeenToken { token: token as u32, output_count: random.below(4) as u32 })
        .collect();
    how.edits = (0..random.below(5))
        .map(|_| (random.below(vocab) as u32, [f32::NEG_INFINITY, 2.5, -1.0][random.below(3)]))
        .collect();
    how.seed = random.bits();
    how.position = random.bits() >> random.below(64);
    how
}

#[test]
fn draws_equal_a_naive_sampler() {
    for features in Features::available() {
        let device = device(features, 3);
        let mut random = Random::new(20);
        for vocab in [3, 16, 257, 5000] {
            let rows: Vec<Vec<f32>> = (0..100)
                .map(|_| random.normals(vocab + 5).into_iter().map(|x| (x * 8.0).round() / 4.0).collect())
                .collect();
            let how: Vec<SampleRow> = rows.iter().map(|_| any(&mut random, vocab)).collect();
            let found = sample(&device, &rows, vocab, &how);
            for ((row, how), found) in rows.iter().zip(&how).zip(found) {
                let weights = naive(&row[..vocab], how);
                if weights.iter().all(|&weight| weight == 0.0 || weight.is_nan()) {
                    assert!(!found.finite, "every token is forbidden");
                    continue;
                }
                let expected = walk(&weights, uniform(how.seed, how.position));
                assert_eq!((found.token, found.finite), (expected, true), "vocabulary {vocab}, {how:?}");
            }
        }
    }
}

#[test]
fn flat_and_steep_rows_of_the_real_size() {
    let device = device(Features::detect(), 2);
    let mut random = Random::new(21);
    for spread in [0.0, 0.01, 1.0, 10.0] {
        let row: Vec<f32> = random.normals(151_936).iter().map(|x| x * spread).collect();
        for (top_k, top_p, min_p) in
            [(0, 0.95, 0.0), (0, 0.3, 0.0), (0, 1.0, 0.1), (50, 0.8, 0.0), (100_000, 1.0, 0.0), (0, 1.0, 0.0)]
        {
            let mut how = plain();
            (how.temperature, how.top_k, how.top_p, how.min_p) = (0.8, top_k, top_p, min_p);
            how.seed = random.bits();
            let found = sample(&device, std::slice::from_ref(&row), 151_665, std::slice::from_ref(&how));
            let expected = walk(&naive(&row[..151_665], &how), uniform(how.seed, 0));
            assert_eq!(found[0].token, expected, "spread {spread}, {how:?}");
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    let device = device(Features::detect(), 2);
    let mut random = Random::new(22);
    let logits = random.normals(40);
    for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (10, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.2)] {
        let mut counts = [0_u32; 40];
        let draws = 20_000;
        let how: Vec<SampleRow> = (0..draws)
            .map(|position| SampleRow {
                temperature: 1.2,
                top_k,
                top_p,
                min_p,
                seed: 99,
                position,
                ..plain()
            })
            .collect();
        let rows = vec![logits.clone(); draws as usize];
        for found in sample(&device, &rows, 40, &how) {
            counts[found.token as usize] += 1;
        }
        let weights = naive(&logits, &how[0]);
        let total: f64 = weights.iter().sum();
        let mut statistic = 0.0;
        for (&count, weight) in counts.iter().zip(&weights) {
            let expected = weight / total * draws as f64;
            if expected == 0.0 {
                assert_eq!(count, 0, "a token outside the kept set came out");
            } else {
                statistic += (f64::from(count) - expected).powi(2) / expected;
            }
        }
        // Chi-square with k degrees of freedom has mean k and variance 2 k: five deviations above is one in a million.
        let freedom = weights.iter().filter(|&&weight| 0.0 < weight).count() as f64 - 1.0;
        assert!(statistic < freedom + 5.0 * (2.0 * freedom).sqrt(), "{statistic} for {freedom}");
    }
}

#[test]
fn a_draw_depends_on_its_row_alone() {
    let mut random = Random::new(23);
    let rows: Vec<Vec<f32>> = (0..40).map(|_| random.normals(3000)).collect();
    let how: Vec<SampleRow> = (0..40).map(|_| any(&mut random, 3000)).collect();
    let together = sample(&device(Features::detect(), 1), &rows, 3000, &how);
    for threads in [1, 4] {
        let device = device(Features::detect(), threads);
        for index in (0..40).rev() {
            let alone = sample(&device, &rows[index..=index], 3000, &how[index..=index]);
            assert_eq!(alone[0], together[index]);
        }
    }
}

#[test]
fn logprobs_are_the_models_own() {
    for features in Features::available() {
        let device = device(features, 1);
        let mut random = Random::new(24);
        for vocab in [1, 5, 700, 151_665] {
            let row: Vec<f32> = random.normals(vocab + 7).iter().map(|x| x * 3.0).collect();
            let total: f64 = row[..vocab].iter().map(|&x| f64::from(x).exp()).sum();
            let logprob = |id: usize| f64::from(row[id]) - total.ln();
            let mut order: Vec<usize> = (0..vocab).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            for count in [0, 1, 20] {
                let mut how = any(&mut random, vocab);
                // The likeliest token is forbidden, and still has its own probability.
                how.edits = if 1 < vocab { vec![(order[0] as u32, f32::NEG_INFINITY)] } else { vec![] };
                how.logprobs = Some(count);
                let found = &sample(&device, std::slice::from_ref(&row), vocab, &[how])[0];
                let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-5 * (1.0 + b.abs());
                assert!(near(found.logprob, logprob(found.token as usize)), "vocabulary {vocab}: {found:?}");
                let ids: Vec<usize> = found.top.iter().map(|(id, _)| *id as usize).collect();
                assert_eq!(ids, order[..vocab.min(count as usize)]);
                assert!(found.top.iter().all(|&(id, x)| near(x, logprob(id as usize))));
            }
        }
    }
}

#[test]
fn nan_and_infinity_fail_their_row_alone() {
    for features in Features::available() {
        let device = device(features, 2);
        let mut random = Random::fresh();
        for vocab in [5, 1000] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut rows: Vec<Vec<f32>> = (0..3).map(|_| random.normals(vocab + 1)).collect();
                let expected = sample(&device, &rows, vocab, &vec![plain(); 3]);
                let place = random.below(vocab);
                rows[1][place] = bad;
                // Not among the vocabulary: no matter.
                rows[2][vocab] = bad;
                // An edit that would hide it comes too late.
                let mut how = vec![plain(); 3];
                how[1].edits = vec![(place as u32, f32::NEG_INFINITY)];
                let found = sample(&device, &rows, vocab, &how);
                assert!(!found[1].finite, "{bad} at {place}, seed {}", random.seed);
                assert_eq!((&found[0], &found[2]), (&expected[0], &expected[2]), "seed {}", random.seed);
            }
        }
    }
}

#[test]
fn forbidden_and_foreign_tokens() {
    let device = device(Features::detect(), 1);
    let row = vec![vec![3.0, 2.0, 1.0, 9.0]];
    let mut how = plain();
    // Token 3 and above are no tokens: edits and penalties of theirs change nothing.
    how.edits = vec![(0, f32::NEG_INFINITY), (3, 100.0), (4_000_000, 1.0)];
    how.seen = vec![SeenToken { token: 3, output_count: 1 }, SeenToken { token: u32::MAX, output_count: 1 }];
    assert_eq!(sample(&device, &row, 3, std::slice::from_ref(&how))[0].token, 1);
    how.edits = (0..3).map(|id| (id, f32::NEG_INFINITY)).collect();
    assert!(!sample(&device, &row, 3, &[how])[0].finite, "nothing is left to choose");
}
