//! How long ranks take to exchange data: from what was measured, or from what connects them.

use crate::layout::cost::CONSTANTS;

/// What lies between two GPUs of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// NVLink between every two.
    NvLink,
    /// NVLink between pairs; larger groups exchange over PCI Express.
    Bridge,
    /// Each reaches the others' memory over PCI Express.
    Pcie,
    /// None reaches another's memory: everything goes through the host's.
    Host,
}

/// How fast the PCI Express is that a bridged card has as well, in bytes a second and direction.
const PCIE_BANDWIDTH: f64 = 64e9;

/// Measured times of all-reduces among so many ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct AllReduceTimes {
    /// Ranks of the group.
    pub ranks: usize,
    /// Bytes each rank has, ascending, and the microseconds until all have the sum.
    pub times: Vec<(usize, f64)>,
}

/// The links of one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Links {
    /// What they are.
    pub wiring: Wiring,
    /// Bytes a second between two GPUs in one direction.
    pub bandwidth: f64,
    /// What was measured here, in groups of two ranks and more; those of other sizes are predicted from that and from the
    /// two fields above.
    pub measured: Vec<AllReduceTimes>,
}

impl Links {
    /// Seconds until each of `ranks` ranks has the sum of their arrays of `bytes` bytes.
    #[must_use]
    pub fn all_reduce_seconds(&self, ranks: usize, bytes: f64) -> f64 {
        if ranks < 2 {
            return 0.0;
        }
        let measured = self.measured.iter().filter(|group| !group.times.is_empty());
        match measured.min_by_key(|group| (group.ranks.abs_diff(ranks), group.ranks < ranks)) {
            Some(group) if group.ranks == ranks => interpolated(&group.times, bytes) * 1e-6,
            // What nobody measured is as far from its prediction as the group that is nearest in size, the larger of two.
            Some(near) => {
                let off = interpolated(&near.times, bytes) * 1e-6 / self.predicted(near.ranks, bytes);
                off * self.predicted(ranks, bytes)
            }
            None => self.predicted(ranks, bytes),
        }
    }

    /// Seconds until each of `ranks` ranks has the `bytes` bytes that every other one has.
    #[must_use]
    pub fn gather_seconds(&self, ranks: usize, bytes: f64) -> f64 {
        match self.wiring {
            // The second of a sum's two shots, in which each rank sends its part of the sum to all others.
            Wiring::NvLink => self.all_reduce_seconds(ranks, ranks as f64 * bytes) / 2.0,
            // Every pair has as much to say to each other as it has in a sum.
            Wiring::Bridge | Wiring::Pcie | Wiring::Host => self.all_reduce_seconds(ranks, bytes),
        }
    }

    /// Seconds to hand `bytes` bytes from one stage to the next: what two ranks send each other to add up.
    #[must_use]
    pub fn hand_over_seconds(&self, bytes: f64) -> f64 {
        self.all_reduce_seconds(2, bytes)
    }

    /// With a link for every pair each rank sends all of its array to all others, or, of longer ones, its part twice: to
    /// be added and as a sum. Without, what every pair has to say to each other takes turns on the way through the host.
    fn predicted(&self, ranks: usize, bytes: f64) -> f64 {
        let (size, others) = (ranks as f64, (ranks - 1) as f64);
        let (one_shot, two_shot) = (CONSTANTS.nvlink_one_shot, CONSTANTS.nvlink_two_shot);
        let of_all_pairs = size * others / 2.0 * bytes;
        match self.wiring {
            Wiring::Bridge if 2 < ranks => exchange(CONSTANTS.pcie, PCIE_BANDWIDTH, of_all_pairs),
            Wiring::NvLink | Wiring::Bridge => {
                let in_one = exchange(one_shot, self.bandwidth, others * bytes);
                let in_two = exchange(two_shot, self.bandwidth, 2.0 * others / size * bytes);
                in_one.min(in_two)
            }
            Wiring::Pcie => exchange(CONSTANTS.pcie, self.bandwidth, of_all_pairs),
            Wiring::Host => exchange(CONSTANTS.host, self.bandwidth, of_all_pairs),
        }
    }
}

/// Seconds for `bytes` bytes over a link, by the microseconds of the shortest exchange and the share of the link's
/// bandwidth that a long one reaches.
fn exchange((latency_us, share): (f64, f64), bandwidth: f64, bytes: f64) -> f64 {
    latency_us * 1e-6 + bytes / (bandwidth * share)
}

/// The time between two measured sizes, on the straight line between them; beyond the last one at its rate.
fn interpolated(times: &[(usize, f64)], bytes: f64) -> f64 {
    let (first, last) = (times[0], times[times.len() - 1]);
    if bytes <= first.0 as f64 {
        return first.1;
    }
    for pair in times.windows(2) {
        let ((small, short), (large, long)) = (pair[0], pair[1]);
        if bytes <= large as f64 {
            let share = (bytes - small as f64) / (large - small).max(1) as f64;
            return short + share * (long - short);
        }
    }
    last.1 * bytes / last.0.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two H200 over peer memory, whichever way is fastest for the size, measured on 2026-11-23.
    const H200_PAIR: [(usize, f64); 7] = [
        (8 << 10, 2.59),
        (64 << 10, 2.97),
        (256 << 10, 4.08),
        (1 << 20, 9.69),
        (4 << 20, 22.75),
        (16 << 20, 61.46),
        (64 << 20, 208.83),
    ];

    /// The same two through the host's memory.
    const H200_PAIR_BY_HOST: [(usize, f64); 7] = [
        (8 << 10, 3.91),
        (64 << 10, 7.71),
        (256 << 10, 17.86),
        (1 << 20, 48.16),
        (4 << 20, 172.3),
        (16 << 20, 665.87),
        (64 << 20, 2679.31),
    ];

    fn links(measured: Vec<AllReduceTimes>) -> Links {
        Links { wiring: Wiring::NvLink, bandwidth: 450e9, measured }
    }

    #[test]
    fn measured_times_are_taken_where_there_are_some() {
        let links = links(vec![AllReduceTimes { ranks: 2, times: H200_PAIR.to_vec() }]);
        for (bytes, us) in H200_PAIR {
            assert!((links.all_reduce_seconds(2, bytes as f64) * 1e6 - us).abs() < 1e-6);
        }
        let us = |ranks, bytes: f64| links.all_reduce_seconds(ranks, bytes) * 1e6;
        assert!((us(2, 1.0) - 2.59).abs() < 1e-6, "none is shorter than the shortest");
        assert!(
            (us(2, f64::from(1 << 27)) - 2.0 * 208.83).abs() < 1e-6,
            "longer ones go at the rate of the longest"
        );
        assert!((us(2, f64::from(160 << 10)) - (2.97 + 4.08) / 2.0).abs() < 1e-6);
        assert!(
            (links.hand_over_seconds(8192.0) * 1e6 - 2.59).abs() < 1e-6,
            "stages go through the same links"
        );
    }

    #[test]
    fn a_group_that_nobody_measured_is_as_far_from_its_prediction_as_the_nearest() {
        let predicted = links(Vec::new());
        let us = |links: &Links, ranks| links.all_reduce_seconds(ranks, 8192.0) * 1e6;
        let half_as_fast = |ranks| AllReduceTimes { ranks, times: vec![(8192, 2.0 * us(&predicted, ranks))] };
        let measured = links(vec![AllReduceTimes { ranks: 2, times: H200_PAIR.to_vec() }, half_as_fast(4)]);
        for ranks in 3..=8 {
            assert!((us(&measured, ranks) / us(&predicted, ranks) - 2.0).abs() < 1e-6, "{ranks}");
        }
        assert!((us(&measured, 2) - 2.59).abs() < 1e-6);
    }

    /// Nothing is sent faster than the links are: each rank's bytes go to every other one.
    #[test]
    fn a_gather_takes_as_long_as_its_bytes_need() {
        for wiring in [Wiring::NvLink, Wiring::Bridge, Wiring::Pcie, Wiring::Host] {
            let links = Links { wiring, ..links(Vec::new()) };
            assert_eq!(links.gather_seconds(1, 1e9), 0.0);
            for ranks in 2..=8 {
                let (bandwidth, others) = (450e9_f64, (ranks - 1) as f64);
                assert!(others * 1e8 / bandwidth < links.gather_seconds(ranks, 1e8), "{wiring:?} {ranks}");
            }
        }
    }

    #[test]
    fn two_h200_are_predicted_within_a_fifth() {
        let by_host = Links { wiring: Wiring::Host, bandwidth: 64e9, measured: Vec::new() };
        for (links, table) in [(links(Vec::new()), H200_PAIR), (by_host, H200_PAIR_BY_HOST)] {
            for (bytes, us) in table {
                let ratio = links.all_reduce_seconds(2, bytes as f64) * 1e6 / us;
                assert!((0.8..1.2).contains(&ratio), "{bytes} bytes: {ratio:.2}");
            }
        }
    }

    /// The fastest of SGLang 0.5.14's, TensorRT-LLM 1.3's and NCCL 2.29's sums between H200 (`ai-dynamo/aiconfigurator`,
    /// `systems/data/h200_sxm/comm`): bytes, then microseconds among four and among eight.
    const H200_OF_OTHERS: [(usize, f64, f64); 8] = [
        (8 << 10, 2.77, 3.50),
        (64 << 10, 3.50, 4.58),
        (256 << 10, 5.43, 8.02),
        (512 << 10, 7.04, 14.89),
        (1 << 20, 10.37, 13.05),
        (4 << 20, 24.55, 32.14),
        (16 << 20, 83.56, 107.60),
        (64 << 20, 322.36, 317.20),
    ];

    /// Nobody has timed our sums among four: others' say that the shortest and the long ones are as predicted. In
    /// between two shots of others meet sooner than ours do (9 us between two).
    #[test]
    fn four_and_eight_h200_are_predicted_near_what_others_sums_take() {
        for (bytes, of_four, of_eight) in H200_OF_OTHERS {
            for (ranks, us) in [(4, of_four), (8, of_eight)] {
                let ratio = links(Vec::new()).all_reduce_seconds(ranks, bytes as f64) * 1e6 / us;
                let most = if (256 << 10..=1 << 20).contains(&bytes) { 1.65 } else { 1.2 };
                assert!((0.75..most).contains(&ratio), "{ranks} ranks, {bytes} bytes: {ratio:.2}");
            }
        }
    }

    /// NCCL 2.27 between L40S without NVLink (`ai-dynamo/aiconfigurator`, `systems/data/l40s`): bytes, then microseconds
    /// between two and among four.
    const L40S: [(usize, f64, f64); 5] = [
        (8 << 10, 8.1, 13.0),
        (128 << 10, 18.8, 58.0),
        (512 << 10, 50.0, 163.0),
        (2 << 20, 121.0, 622.0),
        (32 << 20, 1689.0, 9837.0),
    ];

    #[test]
    fn cards_on_pci_express_are_predicted_within_three_tenths() {
        let links = Links { wiring: Wiring::Pcie, bandwidth: 32e9, measured: Vec::new() };
        for (bytes, of_two, of_four) in L40S {
            for (ranks, us) in [(2, of_two), (4, of_four)] {
                let ratio = links.all_reduce_seconds(ranks, bytes as f64) * 1e6 / us;
                assert!((0.7..1.3).contains(&ratio), "{ranks} ranks, {bytes} bytes: {ratio:.2}");
            }
        }
    }

    #[test]
    fn nothing_is_exchanged_alone_and_more_ranks_take_no_less() {
        for wiring in [Wiring::NvLink, Wiring::Bridge, Wiring::Pcie, Wiring::Host] {
            let links = Links { wiring, ..links(Vec::new()) };
            assert_eq!(links.all_reduce_seconds(1, 1e9), 0.0);
            for ranks in 2..8 {
                assert!(links.all_reduce_seconds(ranks, 1e6) <= links.all_reduce_seconds(ranks + 1, 1e6));
            }
        }
    }
}
