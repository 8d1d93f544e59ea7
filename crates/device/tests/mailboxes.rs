//! The meeting of GPUs' ranks (cuda/common/peers.cuh, cuda/all_reduce.cu) as a model whose every interleaving is tried.
//!
//! The kernels cannot run without GPUs, and on GPUs a wrong order shows once in a million calls. The model keeps what
//! decides: two sets of places used in turn, flags that are calls' numbers, counts that are a block's own, arrays that peers
//! read and write, kernels of a rank one after the other, and waits that may be given up at any moment. Each mistake the
//! protocol guards against is planted once, and must be found.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::HashSet;

const MOST_RANKS: usize = 3;
const BLOCKS: usize = 2;
/// What an array is cut into: the only block of a call takes all of it, two take one each.
const SHARES: usize = 2;
/// As `kFarAhead`.
const FAR_AHEAD: u32 = 64;
/// A few calls before the numbers wrap around.
const FIRST_COUNT: u32 = u32::MAX - 2;

/// How arrays are summed; columns are put side by side as in one shot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Flagged,
    OneShot,
    TwoShot,
}

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// Places are not used in turn.
    OneSet,
    /// A flag does not wait for what it tells of.
    FlagFirst,
    /// Ranks go on before their peers have written to their arrays.
    NoLastMeeting,
    /// Counts only move in blocks that a call has.
    OwnCounts,
    /// A rank that gave up tells peers that its share of a sum is there.
    SharesAfterFault,
}

/// What a block does next: with which peer, and with which share of the array.
#[derive(Clone, Copy, Debug)]
enum Op {
    PushWord(usize, usize),
    TakeWord(usize, usize),
    Push(usize, usize),
    Tell(usize),
    Await(usize),
    Take(usize, usize),
    TellArray(usize),
    AwaitArray(usize),
    /// Nothing more from a block whose addresses may be missing.
    LeaveAfterFault,
    Read(usize, usize),
    Write(usize, usize),
    TellEnd(usize),
    AwaitEnd(usize),
}

/// What lies in a place: nothing, or the part that a rank brought to a call.
type Part = Option<(u8, u8)>;

/// An array's share: what the rank itself brought to a call, or its sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Share {
    Own(u8),
    Sum(u8),
}

/// By turn, share (or block) and the rank that wrote.
type Places<T> = [[[T; MOST_RANKS]; SHARES]; 2];

#[derive(Clone, PartialEq, Eq, Hash)]
struct Rank {
    /// Which call of the script is under way.
    call: u8,
    /// Each block's next operation.
    at: [usize; BLOCKS],
    counts: [u32; BLOCKS],
    faulted: bool,
    /// It took what nobody brought.
    wrong: bool,
    words: Places<(u32, Part)>,
    places: Places<Part>,
    arrays: Places<u32>,
    joined: [[u32; MOST_RANKS]; BLOCKS],
    /// Its own array, by share and the rank that sums this part of it.
    x: [[Share; MOST_RANKS]; SHARES],
}

struct Model {
    ranks: usize,
    /// How each call sums, and its blocks.
    script: Vec<(Way, usize)>,
    planted: Planted,
    /// Waits may be given up.
    impatient: bool,
    /// By rank, call and block: what it does, in order.
    ops: Vec<Vec<Vec<Vec<Op>>>>,
}

impl Model {
    fn new(ranks: usize, script: Vec<(Way, usize)>, planted: Planted, impatient: bool) -> Self {
        let mut model = Self { ranks, script, planted, impatient, ops: Vec::new() };
        let of_call = |rank, (way, blocks): &(Way, usize)| -> Vec<_> {
            (0..*blocks).map(|b| model.ops(rank, *way, b, *blocks)).collect()
        };
        let of_rank = |rank| model.script.iter().map(|call| of_call(rank, call)).collect();
        model.ops = (0..ranks).map(of_rank).collect();
        model
    }

    fn start(&self) -> Vec<Rank> {
        let rank = Rank {
            call: 0,
            at: [0; BLOCKS],
            counts: [FIRST_COUNT; BLOCKS],
            faulted: false,
            wrong: false,
            words: [[[(FIRST_COUNT, None); MOST_RANKS]; SHARES]; 2],
            places: [[[None; MOST_RANKS]; SHARES]; 2],
            arrays: [[[FIRST_COUNT; MOST_RANKS]; BLOCKS]; 2],
            // The last block was last used by an early call.
            joined: [[FIRST_COUNT; MOST_RANKS], [1000; MOST_RANKS]],
            x: [[Share::Own(0); MOST_RANKS]; SHARES],
        };
        vec![rank; self.ranks]
    }

    /// What block `b` of `blocks` does in a call, in order.
    fn ops(&self, rank: usize, way: Way, b: usize, blocks: usize) -> Vec<Op> {
        let peers = || (0..self.ranks).filter(move |peer| *peer != rank);
        let shares = || (b..SHARES).step_by(blocks);
        let each =
            |op: fn(usize, usize) -> Op| shares().flat_map(move |s| peers().map(move |peer| op(peer, s)));
        let mut ops = Vec::new();
        match way {
            Way::Flagged => {
                for s in shares() {
                    ops.extend(peers().map(|peer| Op::PushWord(peer, s)));
                    ops.extend(peers().map(|peer| Op::TakeWord(peer, s)));
                }
            }
            Way::OneShot => {
                ops.extend(each(Op::Push));
                ops.extend(peers().flat_map(|peer| [Op::Tell(peer), Op::Await(peer)]));
                ops.extend(each(Op::Take));
                if self.planted == Planted::FlagFirst {
                    ops.sort_by_key(|op| !matches!(op, Op::Tell(_)));
                }
            }
            Way::TwoShot => {
                ops.extend(peers().flat_map(|peer| [Op::TellArray(peer), Op::AwaitArray(peer)]));
                if self.planted != Planted::SharesAfterFault {
                    ops.push(Op::LeaveAfterFault);
                }
                for s in shares() {
                    ops.extend((0..self.ranks).map(|peer| Op::Read(peer, s)));
                    ops.extend((0..self.ranks).map(|peer| Op::Write(peer, s)));
                }
                ops.extend(peers().flat_map(|peer| [Op::TellEnd(peer), Op::AwaitEnd(peer)]));
                if self.planted == Planted::NoLastMeeting {
                    ops.retain(|op| !matches!(op, Op::TellEnd(_) | Op::AwaitEnd(_)));
                }
            }
        }
        ops
    }

    /// Carries out the next operation of a block; false when it has to wait.
    fn step(&self, world: &mut [Rank], r: usize, b: usize, op: Op, gives_up: bool) -> bool {
        let (call, number) = (world[r].call, world[r].counts[b].wrapping_add(1));
        let set = if self.planted == Planted::OneSet { 0 } else { number as usize % 2 };
        let brought = |rank: usize| Some((rank as u8, call));
        let came = |counter: u32, number: u32| counter.wrapping_sub(number) <= FAR_AHEAD;
        let here = match op {
            Op::TakeWord(peer, s) => world[r].words[set][s][peer].0 == number,
            Op::Await(peer) => came(world[r].joined[b][peer], number),
            Op::AwaitArray(peer) => world[r].arrays[set][b][peer] == number,
            Op::AwaitEnd(peer) => came(world[r].joined[b][peer], number.wrapping_add(1)),
            _ => true,
        };
        if !here {
            world[r].faulted |= gives_up;
            // One wait's fault ends those behind it.
            return world[r].faulted;
        }
        match op {
            Op::PushWord(peer, s) => world[peer].words[set][s][r] = (number, brought(r)),
            Op::TakeWord(peer, s) => world[r].wrong |= world[r].words[set][s][peer].1 != brought(peer),
            Op::Push(peer, s) => world[peer].places[set][s][r] = brought(r),
            Op::Tell(peer) => world[peer].joined[b][r] = number,
            Op::Take(peer, s) => world[r].wrong |= world[r].places[set][s][peer] != brought(peer),
            Op::TellArray(peer) => world[peer].arrays[set][b][r] = number,
            Op::Read(peer, s) => world[r].wrong |= world[peer].x[s][r] != Share::Own(call),
            Op::Write(peer, s) => world[peer].x[s][r] = Share::Sum(call),
            Op::TellEnd(peer) => world[peer].joined[b][r] = number.wrapping_add(1),
            Op::Await(_) | Op::AwaitArray(_) | Op::AwaitEnd(_) | Op::LeaveAfterFault => {}
        }
        true
    }

    /// Moves a block on, and the rank to its next call when its last block has ended. An error is a sum that is wrong.
    fn move_on(&self, world: &mut [Rank], r: usize, b: usize) -> Result<(), String> {
        let (way, blocks) = self.script[usize::from(world[r].call)];
        let ops = &self.ops[r][usize::from(world[r].call)];
        let rank = &mut world[r];
        let leaves = rank.faulted && matches!(ops[b][rank.at[b]], Op::LeaveAfterFault);
        rank.at[b] = if leaves { ops[b].len() } else { rank.at[b] + 1 };
        if (0..blocks).any(|b| rank.at[b] < ops[b].len()) {
            return Ok(());
        }
        let sums = |shares: &[Share; MOST_RANKS]| {
            shares[..self.ranks].iter().all(|share| *share == Share::Sum(rank.call))
        };
        if !rank.faulted && (rank.wrong || (way == Way::TwoShot && !rank.x.iter().all(sums))) {
            return Err(format!("rank {r} has a wrong sum of call {} ({way:?})", rank.call));
        }
        let more = if way == Way::TwoShot { 2 } else { 1 };
        let moved = if self.planted == Planted::OwnCounts { blocks } else { BLOCKS };
        rank.counts[..moved].iter_mut().for_each(|count| *count = count.wrapping_add(more));
        rank.call += 1;
        rank.at = [0; BLOCKS];
        // The kernels between two calls write the array anew.
        rank.x = [[Share::Own(rank.call); MOST_RANKS]; SHARES];
        // After a fault calls do nothing.
        if rank.faulted {
            rank.call = self.script.len() as u8;
        }
        Ok(())
    }

    /// Tries every order; the first mistake found, or how many states there are.
    fn explore(&self) -> Result<usize, String> {
        let start = self.start();
        let mut seen = HashSet::from([start.clone()]);
        let mut open = vec![start];
        while let Some(world) = open.pop() {
            let mut stuck = true;
            for r in 0..self.ranks {
                let Some(ops) = self.ops[r].get(usize::from(world[r].call)) else { continue };
                for (b, ops) in ops.iter().enumerate() {
                    let Some(op) = ops.get(world[r].at[b]).copied() else { continue };
                    // Giving up at the very end is left out: see the test.
                    let may_give_up = self.impatient && !matches!(op, Op::AwaitEnd(_));
                    for gives_up in [false, true].into_iter().filter(|gives_up| may_give_up || !gives_up) {
                        let mut next = world.clone();
                        if !self.step(&mut next, r, b, op, gives_up) {
                            continue;
                        }
                        stuck = false;
                        self.move_on(&mut next, r, b)?;
                        if seen.insert(next.clone()) {
                            open.push(next);
                        }
                    }
                }
            }
            if stuck && !self.impatient && world.iter().any(|rank| usize::from(rank.call) < self.script.len())
            {
                let calls: Vec<u8> = world.iter().map(|rank| rank.call).collect();
                return Err(format!("all wait for each other, at calls {calls:?}"));
            }
        }
        Ok(seen.len())
    }
}

const WAYS: [Way; 3] = [Way::Flagged, Way::OneShot, Way::TwoShot];

/// Blocks of three calls: enough for a set to be used again.
const BLOCKS_OF_CALLS: [[usize; 3]; 2] = [[1, 2, 1], [2, 1, 2]];

/// Every script with one of these blocks: each way follows each other.
fn scripts(blocks: &[[usize; 3]]) -> impl Iterator<Item = Vec<(Way, usize)>> {
    blocks.iter().flat_map(|blocks| {
        (0..3_usize.pow(3)).map(move |number| {
            (0..3).map(|call| (WAYS[number / 3_usize.pow(call) % 3], blocks[call as usize])).collect()
        })
    })
}

fn try_all(planted: Planted, impatient: bool) -> Result<usize, String> {
    // With patience there are far fewer orders.
    let blocks = if impatient { &BLOCKS_OF_CALLS[..1] } else { &BLOCKS_OF_CALLS };
    scripts(blocks).map(|script| Model::new(2, script, planted, impatient).explore()).sum()
}

#[test]
fn two_ranks_sum_right_in_every_order() {
    try_all(Planted::Nothing, false).unwrap();
}

#[test]
fn three_ranks_sum_right_in_every_order() {
    let script = vec![(Way::TwoShot, 1), (Way::OneShot, 1), (Way::Flagged, 1)];
    Model::new(3, script, Planted::Nothing, false).explore().unwrap();
}

/// Whoever gives up waiting is lost, and says so. The others may not take what it left for right.
///
/// One order is left out: a rank that gives up at the very end of two shots goes on to overwrite the array that a late peer
/// still reads. The peer cannot do another call, and hears of the fault when its step ends.
#[test]
fn a_rank_that_gives_up_spoils_nobodys_sum() {
    try_all(Planted::Nothing, true).unwrap();
}

#[test]
fn each_mistake_is_found() {
    for (planted, impatient) in [
        (Planted::OneSet, false),
        (Planted::FlagFirst, false),
        (Planted::NoLastMeeting, false),
        (Planted::OwnCounts, false),
        (Planted::SharesAfterFault, true),
    ] {
        let found = try_all(planted, impatient);
        assert!(found.is_err(), "{planted:?} is not found in {found:?} states");
    }
}
