//! Collectives by threads: sums and gathers against the host's, and every way a rank can fail the others.

mod support;

use std::sync::mpsc;
use std::time::Duration;

use half::{bf16, f16};
use phalanx_device::collective::alone::Alone;
use phalanx_device::collective::threads::{ThreadGroup, group};
use phalanx_device::cpu::Cpu;
use phalanx_device::cpu::features::Features;
use phalanx_device::{Backend, Collective, DType, Device, DeviceError, Tensor, ViewMut};
use support::{Island, Random, device, tensor};

/// Long enough for a machine that does other things, too.
const PATIENT: Duration = Duration::from_secs(120);

/// Runs `work` on each rank of a group, each on its own thread; returns what each returned.
fn on_ranks<R: Send>(size: usize, work: impl Fn(ThreadGroup, &Device) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = group(size, PATIENT)
            .into_iter()
            .map(|rank| scope.spawn(|| work(rank, &device(Features::detect(), 1))))
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("no rank panics")).collect()
    })
}

/// What rank `rank` brings to operation `operation`.
fn numbers(seed: u64, operation: usize, rank: usize, count: usize) -> Vec<f32> {
    Random::new(seed ^ ((operation * 64 + rank) as u64) << 20).normals(count)
}

/// The sum as every rank must have it: rank order, from zero.
fn sum(parts: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0.0_f32; parts[0].len()];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    sum
}

#[test]
fn random_operations_equal_the_hosts() {
    for size in [1, 2, 3, 4, 7, 8] {
        let seed = Random::fresh().seed;
        let operations = 4000 / size;
        on_ranks(size, |group, device| {
            // Every rank makes the same choices.
            let mut choices = Random::new(seed);
            for operation in 0..operations {
                let (rows, width) = (1 + choices.below(4), 1 + choices.below(70));
                // Now and then large enough for the ranks to share the sums.
                let width = if choices.below(100) == 0 { 20_000 + width } else { width };
                let what = format!("{size} ranks, seed {seed}, operation {operation}");
                if choices.below(2) == 0 {
                    let own = numbers(seed, operation, group.rank(), rows * width);
                    let mut x = Island::new(device, rows, width, Some(&own));
                    group.all_reduce(x.view_mut());
                    let parts: Vec<_> =
                        (0..size).map(|rank| numbers(seed, operation, rank, rows * width)).collect();
                    assert_eq!(x.values(device), sum(&parts), "{what}");
                } else {
                    let widths: Vec<usize> = (0..size).map(|rank| (width * 7 + rank * 3) % 11).collect();
                    let parts: Vec<_> =
                        (0..size).map(|rank| numbers(seed, operation, rank, rows * widths[rank])).collect();
                    let x = Island::new(device, rows, widths[group.rank()], Some(&parts[group.rank()]));
                    let mut out = Island::new(device, rows, widths.iter().sum(), None);
                    group.gather_columns(out.view_mut(), x.view());
                    let expected: Vec<f32> = (0..rows)
                        .flat_map(|row| {
                            parts.iter().zip(&widths).map(move |(part, width)| (row, part, width))
                        })
                        .flat_map(|(row, part, width)| part[row * width..(row + 1) * width].to_vec())
                        .collect();
                    assert_eq!(out.values(device), expected, "{what}");
                }
            }
            assert_eq!(group.fault(), None);
        });
    }
}

#[test]
fn halves_are_added_in_single_precision() {
    for dtype in [DType::F16, DType::BF16] {
        let round = |x: f32| match dtype {
            DType::F16 => f16::from_f32(x).to_f32(),
            _ => bf16::from_f32(x).to_f32(),
        };
        let encode = |x: f32| match dtype {
            DType::F16 => f16::from_f32(x).to_bits(),
            _ => bf16::from_f32(x).to_bits(),
        };
        let parts: Vec<Vec<f32>> =
            (0..4).map(|rank| numbers(5, 0, rank, 300).into_iter().map(round).collect()).collect();
        on_ranks(4, |group, device| {
            let cpu = Cpu::new(1).expect("a thread");
            let mut x: Tensor = tensor(device, dtype, 3, 100);
            let bytes: Vec<u8> = parts[group.rank()].iter().flat_map(|&x| encode(x).to_ne_bytes()).collect();
            cpu.write(x.view_mut(), &bytes);
            group.all_reduce(x.view_mut());
            let mut found = vec![0; 600];
            cpu.read(x.view(), &mut found);
            let expected: Vec<u8> = sum(&parts).into_iter().flat_map(|x| encode(x).to_ne_bytes()).collect();
            assert_eq!(found, expected, "{dtype:?}");
        });
    }
}

#[test]
fn stages_pass_messages_on_and_run_ahead() {
    let messages = 500;
    on_ranks(3, |group, device| {
        let mut x = Island::new(device, 2, 5, None);
        for message in 0..messages {
            let expected = numbers(6, message, 0, 10);
            match group.rank() {
                0 => x = Island::new(device, 2, 5, Some(&expected)),
                rank => {
                    group.receive(rank - 1, x.view_mut());
                    assert_eq!(x.values(device), expected);
                }
            }
            if group.rank() < 2 {
                group.send(group.rank() + 1, x.view());
            }
        }
        assert_eq!(group.fault(), None);
    });
}

/// A view of two rows of one number.
fn small(tensor: &mut Tensor) -> ViewMut<'_> {
    tensor.view_mut()
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let device = device(Features::detect(), 1);
    let deadline = Duration::from_millis(50);
    let check = |expected: &str, operation: &dyn Fn(&ThreadGroup, &mut Tensor)| {
        let ranks = group(2, deadline);
        let mut x = tensor(&device, DType::F32, 2, 1);
        operation(&ranks[0], &mut x);
        let fault = Some(DeviceError(expected.to_owned()));
        assert_eq!(ranks[0].fault(), fault);
        // The other learns of it, and does nothing.
        ranks[1].all_reduce(x.view_mut());
        assert_eq!(ranks[1].fault(), fault);
        let alone = Box::new(Cpu::new(1).expect("a thread"));
        let [first, _] = <[ThreadGroup; 2]>::try_from(ranks).ok().expect("two ranks");
        let device = Device::new(alone, Box::new(first), Box::new(Alone));
        assert_eq!(device.collect().err(), fault, "it comes out of collect");
    };
    check("rank 1 of 2 did not come to all_reduce within 50 ms", &|rank, x| rank.all_reduce(small(x)));
    check("rank 1 of 2 did not come to send within 50 ms", &|rank, x| rank.receive(1, small(x)));
    check("rank 1 of 2 did not come to receive within 50 ms", &|rank, x| {
        (0..5).for_each(|_| rank.send(1, x.view()));
    });
    check("rank 1 of 2 did not come to gather_columns within 50 ms", &|rank, x| {
        let mut out = tensor(&device, DType::F32, 2, 2);
        rank.gather_columns(out.view_mut(), x.view());
    });
}

/// Two ranks wait in `all_reduce`; `end` ends their wait, and they return the fault.
fn faults_of_the_waiting(end: impl FnOnce(ThreadGroup)) -> Vec<String> {
    let mut ranks = group(3, PATIENT);
    let third = ranks.pop().expect("three ranks");
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for rank in ranks {
            let send = send.clone();
            scope.spawn(move || {
                let device = device(Features::detect(), 1);
                let mut x = tensor(&device, DType::F32, 1, 4);
                rank.all_reduce(x.view_mut());
                rank.all_reduce(x.view_mut());
                send.send(rank.fault().map(|fault| fault.0)).expect("the test listens");
            });
        }
        end(third);
        let fault = || receive.recv_timeout(PATIENT / 2).expect("woken at once, not by the deadline");
        (0..2).map(|_| fault().expect("a fault")).collect()
    })
}

#[test]
fn a_rank_that_leaves_wakes_the_others() {
    let gone = "rank 2 of 3 is gone and did not come to all_reduce";
    assert_eq!(faults_of_the_waiting(drop), [gone; 2]);
    // It came once, then panicked.
    let panics = |rank: ThreadGroup| {
        let thread = std::thread::Builder::new().spawn(move || {
            let device = device(Features::detect(), 1);
            rank.all_reduce(tensor(&device, DType::F32, 1, 4).view_mut());
            std::panic::resume_unwind(Box::new("lost"));
        });
        assert!(thread.expect("a thread").join().is_err());
    };
    assert_eq!(faults_of_the_waiting(panics), [gone; 2]);
}

#[test]
fn an_abort_wakes_everybody() {
    let faults = faults_of_the_waiting(|rank| {
        rank.abort_handle().abort("the engine ends");
        // The first fault stays, whoever aborts.
        rank.abort("again");
        assert_eq!(rank.fault(), Some(DeviceError("the engine ends".to_owned())));
    });
    assert_eq!(faults, ["the engine ends"; 2]);
}

#[test]
fn ranks_that_disagree_are_told_so() {
    let faults = faults_of_the_waiting(|rank| {
        let device = device(Features::detect(), 1);
        rank.all_reduce(tensor(&device, DType::F32, 2, 4).view_mut());
    });
    for fault in faults {
        assert!(fault.contains("came to all_reduce of [") && fault.contains("[2, 4]"), "{fault}");
    }
}

#[test]
fn a_rank_that_is_done_may_leave() {
    on_ranks(4, |group, device| {
        let mut x = tensor(device, DType::F32, 1, 1);
        for _ in 0..50 {
            group.all_reduce(x.view_mut());
        }
        if group.rank() == 0 {
            group.send(1, x.view());
        }
        if group.rank() == 1 {
            group.receive(0, x.view_mut());
        }
        assert_eq!(group.fault(), None);
    });
}

#[test]
fn alone() {
    let device = device(Features::detect(), 1);
    let own = [1.0, 2.0, 3.0, 4.0];
    let mut x = Island::new(&device, 2, 2, Some(&own));
    device.all_reduce(x.view_mut());
    assert_eq!(x.values(&device), own);
    assert_eq!((Alone.rank(), Alone.size(), Alone.fault()), (0, 1, None));
}

#[test]
#[should_panic(expected = "a rank alone has all columns")]
fn a_rank_alone_gathers_nothing() {
    let device = device(Features::detect(), 1);
    let (x, mut out) = (Island::new(&device, 1, 1, None), Island::new(&device, 1, 1, None));
    device.gather_columns(out.view_mut(), x.view());
}
