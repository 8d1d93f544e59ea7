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
    /// What was measured here; groups of other sizes are predicted from the two fields above.
    pub measured: Vec<AllReduceTimes>,
}

impl Links {
    /// Seconds until each of `ranks` ranks has the sum of their arrays of `bytes` bytes.
    #[must_use]
    pub fn all_reduce_seconds(&self, ranks: usize, bytes: f64) -> f64 {
        if ranks < 2 {
            return 0.0;
        }
        match self.measured.iter().find(|group| group.ranks == ranks && !group.times.is_empty()) {
            Some(group) => interpolated(&group.times, bytes) * 1e-6,
            None => self.predicted(ranks, bytes),
        }
    }

    /// Seconds to hand `bytes` bytes from one stage to the next.
    #[must_use]
    pub fn hand_over_seconds(&self, bytes: f64) -> f64 {
        let (latency_us, share) = self.quality(2);
        latency_us * 1e-6 + bytes / (self.bandwidth * share)
    }

    /// With a link for every pair each rank sends its part to all others twice, once to be added and once as a sum.
    /// Without, what every pair has to say to each other takes turns on the way through the host.
    fn predicted(&self, ranks: usize, bytes: f64) -> f64 {
        let (latency_us, share) = self.quality(ranks);
        let (size, others) = (ranks as f64, (ranks - 1) as f64);
        let (bandwidth, turns) = match self.wiring {
            Wiring::NvLink => (self.bandwidth, 2.0 * others / size),
            Wiring::Bridge if ranks == 2 => (self.bandwidth, 1.0),
            Wiring::Bridge => (PCIE_BANDWIDTH, size * others / 2.0),
            Wiring::Pcie | Wiring::Host => (self.bandwidth, size * others / 2.0),
        };
        latency_us * 1e-6 + turns * bytes / (bandwidth * share)
    }

    /// Microseconds of the shortest exchange, and the share of the bandwidth that a long one reaches.
    fn quality(&self, ranks: usize) -> (f64, f64) {
        match self.wiring {
            Wiring::NvLink => CONSTANTS.nvlink,
            Wiring::Bridge if ranks == 2 => CONSTANTS.nvlink,
            Wiring::Bridge | Wiring::Pcie => CONSTANTS.pcie,
            Wiring::Host => CONSTANTS.host,
        }
    }
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
        assert!(us(4, 8192.0) != us(2, 8192.0));
    }

    /// A few microseconds of the short ones and a quarter of the long ones: fractions of a step.
    #[test]
    fn two_h200_are_predicted_within_two_microseconds_or_a_quarter() {
        let by_host = Links { wiring: Wiring::Host, bandwidth: 64e9, measured: Vec::new() };
        for (links, table) in [(links(Vec::new()), H200_PAIR), (by_host, H200_PAIR_BY_HOST)] {
            for (bytes, us) in table {
                let predicted = links.all_reduce_seconds(2, bytes as f64) * 1e6;
                let off = (predicted - us).abs();
                assert!(off < 2.0 || off < us / 4.0, "{bytes} bytes: {predicted} us for {us}");
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
